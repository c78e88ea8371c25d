"""What `tinygpt` exports, which its __init__.py names up to three times: for users, for the lazy import, for type
checkers. What is missing at one of the places is named in a sentence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinygpt

FILE = "tinygpt/__init__.py"
TEXT = (Path(__file__).parents[2] / FILE).read_text(encoding="utf-8")


def imported(statements: list[ast.stmt]) -> dict[str, str]:
    """{name: module, "" for a module itself} of the imports from this package."""
    found = [node for node in statements if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {alias.asname or alias.name: node.module or "" for node in found for alias in node.names}


def assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """{name: value} of the assignments at the outermost level."""
    found = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in found for target in node.targets if isinstance(target, ast.Name)}


def mistakes(text: str) -> Iterator[str]:
    tree = ast.parse(text)
    values = assigned(tree)
    public, home = set(ast.literal_eval(values["__all__"])), ast.literal_eval(values["_HOME"])
    (checked,) = (imported(node.body) for node in tree.body if isinstance(node, ast.If))
    at_once = {*imported(tree.body), *values}
    for name, module in home.items():
        if name not in public:
            yield f"_HOME of {FILE} names {name}, which nobody sees: add it to __all__"
        if checked.get(name) != module:
            yield f"type checkers do not know {name}: below TYPE_CHECKING in {FILE}, add from .{module} import {name}"
    for name in sorted(public - set(home) - at_once):
        if checked.get(name) != "":
            yield (
                f"__all__ of {FILE} names {name}, which nothing imports: name its module in _HOME, "
                f"or, if it is a module, add it to from . import (...) below TYPE_CHECKING"
            )
    for name, module in checked.items():
        if module and name not in home:
            yield f'type checkers know {name}, which can\'t be imported: add "{name}": "{module}" to _HOME of {FILE}'
        elif name not in public and name not in home:
            yield f"type checkers know the module {name}, which nobody sees: add it to __all__ of {FILE}"


def test_each_export_is_at_all_its_places() -> None:
    found = list(mistakes(TEXT))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "without", "sentence"),
    [
        (' "draw",', "", "_HOME of tinygpt/__init__.py names draw, which nobody sees: add it to __all__"),
        (
            "    from .interpret import draw\n", "",
            "type checkers do not know draw: below TYPE_CHECKING in tinygpt/__init__.py, "
            "add from .interpret import draw",
        ),
        (
            '    "draw": "interpret",\n', "",
            "__all__ of tinygpt/__init__.py names draw, which nothing imports: name its module in _HOME, "
            "or, if it is a module, add it to from . import (...) below TYPE_CHECKING",
        ),
        (
            "        interpret,\n", "",
            "__all__ of tinygpt/__init__.py names interpret, which nothing imports: name its module in _HOME, "
            "or, if it is a module, add it to from . import (...) below TYPE_CHECKING",
        ),
        (
            "    from .interpret import draw\n", "    from .interpret import draw, explain\n",
            'type checkers know explain, which can\'t be imported: add "explain": "interpret" to _HOME of '
            "tinygpt/__init__.py",
        ),
        (
            "        interpret,\n", "        interpret, exchange,\n",
            "type checkers know the module exchange, which nobody sees: add it to __all__ of tinygpt/__init__.py",
        ),
    ],
)  # fmt: skip
def test_a_place_that_is_forgotten_is_named(line: str, without: str, sentence: str) -> None:
    assert TEXT.count(line) == 1
    assert next(mistakes(TEXT.replace(line, without))) == sentence


def test_every_export_is_there() -> None:
    for name in tinygpt.__all__:
        assert getattr(tinygpt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'exchanges'"):
        tinygpt.exchanges  # noqa: B018
