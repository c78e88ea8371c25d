"""A command has all its parts; and for each part that is forgotten there is a sentence that names it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tinygpt import cli

ROOT = Path(__file__).parents[2]
FILES = {"eval": "evaluate"}  # a command whose file has another name


@dataclass(frozen=True)
class Parts:
    """Names of commands, by where they are named."""

    known: frozenset[str]  # to COMMANDS
    written: frozenset[str]  # as files of tinygpt/cli with options of their own
    docstring: frozenset[str]
    pages: frozenset[str]
    tests: frozenset[str]


def collect() -> Parts:
    names = {file: name for name, file in FILES.items()}
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tinygpt" / "cli").glob("[!_]*.py")}
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return Parts(
        known=frozenset(cli.COMMANDS),
        written=frozenset(names.get(stem, stem) for stem, text in files.items() if "\nABOUT = " in text),
        docstring=frozenset(re.findall(r"^    tinygpt (\w+)", cli.__doc__ or "", re.MULTILINE)),
        pages=frozenset(re.findall(r"\btinygpt (\w+)", pages)),
        tests=frozenset(re.findall(r"\brun\(\s*\"(\w+)\"", tests)),
    )


def missing(parts: Parts) -> Iterator[str]:
    for name in sorted(parts.written - parts.known):
        yield f"tinygpt/cli/{FILES.get(name, name)}.py has a command that COMMANDS of tinygpt/cli/__init__.py lacks"
    for name in sorted(parts.known):
        if name not in parts.written:
            yield f"COMMANDS names {name}, but tinygpt/cli/{FILES.get(name, name)}.py with ABOUT does not exist"
        if name not in parts.docstring:
            yield f"the docstring of tinygpt/cli/__init__.py does not show tinygpt {name}"
        if name not in parts.pages:
            yield f"no page of docs/ shows tinygpt {name}"
        if name not in parts.tests:
            yield f"no test runs tinygpt {name}: write tests/cli/test_{name}.py with the fixture `run`"


PARTS = collect()


def test_no_part_is_missing() -> None:
    assert not list(missing(PARTS)), "\n".join(missing(PARTS))
    assert PARTS.docstring == PARTS.known


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("known", "tinygpt/cli/convert.py has a command that COMMANDS of tinygpt/cli/__init__.py lacks"),
        ("written", "COMMANDS names convert, but tinygpt/cli/convert.py with ABOUT does not exist"),
        ("docstring", "the docstring of tinygpt/cli/__init__.py does not show tinygpt convert"),
        ("pages", "no page of docs/ shows tinygpt convert"),
        ("tests", "no test runs tinygpt convert: write tests/cli/test_convert.py"),
    ],
)
def test_a_part_that_is_forgotten_is_named(where: str, sentence: str) -> None:
    (found,) = missing(replace(PARTS, **{where: getattr(PARTS, where) - {"convert"}}))
    assert found.startswith(sentence)
