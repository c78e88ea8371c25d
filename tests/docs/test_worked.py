"""Every figure of the pages, and every answer to an exercise.

Each operation has an example, an exercise with a hidden answer, and a check of that answer (tests/docs/exercises).
"""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs.exercises import CHECKS, __main__
from tests.modules import module_in
from tinygpt import Tensor

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WORKED = DOCS / "worked"
OPERATIONS = module_in(ROOT / "docs", "parts.operations").ORDER  # a new one gets its example with its place there
PAGES = [
    path
    for folder in ("worked", ".")
    for path in sorted((DOCS / folder).glob("*.md"))
    if "```pycon" in path.read_text("utf-8")
]


def examples(text: str) -> str:
    """The code of a page, in its order: names go from one block to the next, those of the answers included."""
    return "\n".join(re.findall(r"^```pycon\n(.*?)^```$", text, re.DOTALL | re.M))


def run(name: str, text: str) -> tuple[int, dict[str, Any]]:
    """How many examples of a page fail, and the names that they define."""
    test = doctest.DocTestParser().get_doctest(examples(text), {}, name, name, 0)
    assert len(test.examples) > 3
    failed = doctest.DocTestRunner(verbose=False).run(test, out=sys.stdout.write, clear_globs=False).failed
    return failed, test.globs


def lacks(name: str) -> list[str]:
    """What the page of an operation does not have."""
    path = WORKED / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, _, answer = text.partition("````{details} Answer")
    exercise = before.partition("\n## Exercise")[2]
    kept = any(word in before for word in (".saved", ".nbytes", "decode_block.reference"))
    has = {
        "a worked example": before.startswith("## A worked example\n") and "```pycon" in before,
        "what is kept, asserted": kept,
        "an exercise": bool(exercise.strip()),
        "a hidden answer with code": "```pycon" in answer,
        "a check of the answer": name in CHECKS,
        "an exercise that names the function to write": name in CHECKS and name_is_given(name, exercise),
    }
    return [what for what, there in has.items() if not there]


def name_is_given(operation: str, exercise: str) -> bool:
    return all(f"`{function}(" in exercise for function in CHECKS[operation].functions)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_its_example_its_exercise_and_a_check(name: str) -> None:
    assert not lacks(name), f"docs/worked/{name}.md lacks {', '.join(lacks(name))}"


def test_an_operation_without_a_page_is_named() -> None:
    assert lacks("softmin") == [
        "a worked example", "what is kept, asserted", "an exercise", "a hidden answer with code",
        "a check of the answer", "an exercise that names the function to write",
    ]  # fmt: skip


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_figure_is_right(path: Path) -> None:
    assert run(path.stem, path.read_text(encoding="utf-8"))[0] == 0


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_an_exercise_has_an_answer_and_the_answer_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    _, _, answer = text.partition("````{details} Answer")
    assert ("## Exercise" in text) == bool(answer)
    assert not answer or answer.count("```pycon") > 0


@pytest.fixture(scope="module")
def answers() -> Callable[[str], dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def of(operation: str) -> dict[str, Any]:
        if operation not in found:
            found[operation] = run(operation, (WORKED / f"{operation}.md").read_text(encoding="utf-8"))[1]
        return dict(found[operation])

    return of


@pytest.mark.parametrize("operation", CHECKS)
def test_an_answer_is_right(operation: str, answers: Callable[[str], dict[str, Any]]) -> None:
    CHECKS[operation].run(answers(operation))


@pytest.mark.parametrize(("operation", "function"), [(name, f) for name, c in CHECKS.items() for f in c.functions])
def test_a_wrong_answer_is_noticed(operation: str, function: str, answers: Callable[[str], dict[str, Any]]) -> None:
    names = answers(operation)
    right = names[function]

    def wrong(*arguments: Any) -> Any:
        return spoilt(right(*arguments))

    with pytest.raises(AssertionError):
        CHECKS[operation].run({**names, function: wrong})


def test_an_answer_that_holds_all_logits_is_noticed(answers: Callable[[str], dict[str, Any]]) -> None:
    names = answers("linear_cross_entropy")
    right = names["loss_and_gradients"]
    with pytest.raises(AssertionError):
        CHECKS["linear_cross_entropy"].run(
            {**names, "loss_and_gradients": lambda x, weight, targets, R: right(x, weight, targets, len(x))}
        )


def spoilt(result: Any) -> Any:
    """The same with the last of several results wrong, or with one element wrong."""
    if isinstance(result, tuple):
        return (*result[:-1], spoilt(result[-1]))
    if isinstance(result, Tensor):
        return result * 1.01
    if isinstance(result, np.ndarray):
        changed = result.copy()
        changed.flat[-1] += 1
        return changed
    return result + 1


@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_a_wrong_figure_is_noticed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (WORKED / f"{name}.md").read_text(encoding="utf-8")
    wrong = text.replace("array([ 0.1875, -0.125 ", "array([ 0.1875, -0.126 ").replace(
        "array([[ 1., -1.,", "array([[ 2., -1.,"
    )
    assert wrong != text
    assert run(name, wrong)[0] == 1
    assert "Failed example" in capsys.readouterr().out


def test_your_own_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def dw(x, w):\n    return 2 * x.T @ (x @ w)\n")
    assert __main__.main(["matmul", str(mine)]) == 0
    mine.write_text("def dw(x, w):\n    return x.T @ (x @ w)\n")
    assert __main__.main(["matmul", str(mine)]) == 1
    mine.write_text("")
    assert __main__.main(["matmul", str(mine)]) == 1
    assert __main__.main(["matmull", str(mine)]) == 2
    assert capsys.readouterr().out.splitlines()[:3] == [
        "matmul: right", "matmul: not right yet", f"{mine} does not define dw",
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_docstring_says_where_it_comes_from_and_what_it_is_checked_against(name: str) -> None:
    module = importlib.import_module(f"tinygpt.ops.{name}")
    text = module.__doc__ or ""
    assert re.search(r"^Source: \S", text, re.M)
    assert re.search(r"^Saved: |Inference only|[Ff]or inference only", text, re.M)
    assert any(key.endswith("_composed") for key in vars(module)) or re.search(r"^No oracle: \S", text, re.M)
