"""The derivations: every file of an operation has its parts, and all say things in the same notation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinygpt import ops

FOLDER = Path(ops.__file__).parent
FILES = sorted(path for path in FOLDER.glob("[!_]*.py"))
HAVE_NO_GRADIENT = {"cached_attention", "decode_block", "packed", "sample_tokens"}


def docstring(text: str) -> str:
    return ast.get_docstring(ast.parse(text)) or ""


def missing(name: str, text: str) -> Iterator[str]:
    """A sentence for each part that the file of an operation lacks, or that is said in another notation."""
    said = docstring(text)
    if not re.search(r"^Source: \S", said, re.M):
        yield f"{name} has no line `Source: ...`: a paper and its section, or that the derivative is elementary"
    composed = re.search(r"^def \w+_composed\(", text, re.M)
    excused = re.search(r"^No oracle: \w", said, re.M)
    if not composed and not excused:
        yield f"{name} has no oracle, <name>_composed, and no line `No oracle: ...` that says why"
    if composed and excused:
        yield f"{name} says that it has no oracle, and has one"
    if name not in HAVE_NO_GRADIENT and not re.search(r"\bd\w+ *=|\bdx_\w+ *=|\bda\b", said):
        yield f"{name} has no formula of a gradient"
    if not re.search(r"^Saved: ", said, re.M) and name not in HAVE_NO_GRADIENT:
        yield f"{name} does not say what is saved"
    if not re.search(r"\bShapes: ", said, re.M):
        yield f"{name} does not say the shapes"
    for symbol in re.findall(r"\bdelta_[a-z]{2}\b", said):
        yield f"{name} writes the Kronecker delta as {symbol}: [i = j]"
    if "unbroadcast(" in text.partition(said)[2] and "unbroadcast" not in said:
        yield f"{name} sums over repeated operands without saying unbroadcast"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_operation_has_its_parts(path: Path) -> None:
    assert list(missing(path.stem, path.read_text(encoding="utf-8"))) == []


def test_the_notation_is_said_once() -> None:
    said = " ".join((ops.__doc__ or "").split())
    assert "`dx`: dL/dx, of x's shape, where L is the scalar on which backward() was called" in said
    assert "`[i = j]`: 1 where i equals j, otherwise 0" in said
    for path in FILES:
        assert "dL/dx" not in docstring(path.read_text(encoding="utf-8")), f"{path.name} says again what dx is"


def test_attention_has_no_letter_with_two_meanings() -> None:
    said = docstring((FOLDER / "attention.py").read_text(encoding="utf-8"))
    assert not re.findall(r"\bm\b|_\w?d\b|\bm_", said)  # the mask is keep, a channel is c, and d is of derivatives


WHOLE = '''"""An operation.

dx = dy

Saved: nothing. No oracle.

Shapes: any.
Source: elementary.
"""
def f_composed(x): ...
'''


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("Source: elementary.", ""), "no line `Source"),
        (("def f_composed(x): ...", ""), "no oracle"),
        (("Saved: nothing. No oracle.", "Saved: nothing.\n\nNo oracle: because."), "says that it has no oracle"),
        (("dx = dy", "none"), "formula"),
        (("Saved: nothing.", ""), "saved"),
        (("Shapes: any.", ""), "shapes"),
        (("dx = dy", "dx_i = delta_ij dy_j"), "Kronecker delta as delta_ij"),
        (("f_composed(x): ...", "f_composed(x): unbroadcast(x)"), "unbroadcast"),
    ],
)
def test_a_part_that_is_missing_is_named(change: tuple[str, str], words: str) -> None:
    assert list(missing("f", WHOLE)) == []
    (sentence,) = missing("f", WHOLE.replace(*change))
    assert words in sentence
