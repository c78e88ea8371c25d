"""Every figure of the worked examples, and every answer to an exercise."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    path
    for folder in ("worked", ".")
    for path in sorted((DOCS / folder).glob("*.md"))
    if "```pycon" in path.read_text("utf-8")
]


def examples(text: str) -> str:
    """The code of a page, in its order: names go from one block to the next, those of the answers included."""
    return "\n".join(re.findall(r"^```pycon\n(.*?)^```$", text, re.DOTALL | re.M))


def failures(name: str, text: str) -> int:
    test = doctest.DocTestParser().get_doctest(examples(text), {}, name, name, 0)
    assert len(test.examples) > 3
    return doctest.DocTestRunner(verbose=False).run(test, out=sys.stdout.write).failed


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_figure_is_right(path: Path) -> None:
    assert failures(path.stem, path.read_text(encoding="utf-8")) == 0


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_an_exercise_has_an_answer_and_the_answer_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    _, _, answer = text.partition("````{details} Answer")
    assert ("## Exercise" in text) == bool(answer)
    assert not answer or answer.count("```pycon") > 0


@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_a_wrong_figure_is_noticed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "worked" / f"{name}.md").read_text(encoding="utf-8")
    wrong = text.replace("array([ 0.1875, -0.125 ", "array([ 0.1875, -0.126 ").replace(
        "array([[ 1., -1.,", "array([[ 2., -1.,"
    )
    assert wrong != text
    assert failures(name, wrong) == 1
    assert "Failed example" in capsys.readouterr().out
