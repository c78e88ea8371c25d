"""Progress in a notebook, on a stand-in for its kernel; `tests/packaging/test_notebooks.py` has a real one."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tinygpt as tg
from tests.training.helpers import ENVIRONMENT, QUICK, SHAPE, TRAIN, VALIDATION
from tinygpt import console


class Stream(io.StringIO):
    """What a kernel has in place of stderr."""


Stream.__module__ = "ipykernel.iostream"


class Cell:
    """What is displayed below a cell: for each output its states, the newest last."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, data: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        states = [data]
        self.outputs.append(states)
        return types.SimpleNamespace(update=lambda data, raw: states.append(data))


def running_in(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """From now on we are in a notebook. No fixture: pytest puts its own stderr in place before the test begins."""
    cell = Cell()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", cell)  # type: ignore[arg-type]  # for `from it import display`
    monkeypatch.setattr(sys, "stderr", Stream())
    return cell


@pytest.mark.usefixtures("without_picture")
def test_a_run_shows_one_bar_that_is_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = running_in(monkeypatch)
    monkeypatch.setattr("tinygpt.training.monitoring.progress._REFRESH", 0.0)
    model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE))
    tg.Trainer(model, TRAIN, VALIDATION, tg.TrainingConfig(**QUICK), tmp_path).run()
    (states,) = cell.outputs
    values = [int(re.search(r'<progress value="(\d+)" max="20"', state["text/html"])[1]) for state in states]  # type: ignore[index]
    assert values == sorted(values)
    assert set(values) == set(range(21))
    assert re.search(r"</progress> 20/20 \[.*loss \d\.\d{3}, [\d,]+ tokens/s\]</div>$", states[-1]["text/html"])
    assert re.fullmatch(r"100% 20/20 \[.* tokens/s\]", states[-1]["text/plain"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {step}" for step in (0, 5, 10, 15, 20)]
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.usefixtures("without_picture")
def test_a_stream_that_was_given_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = running_in(monkeypatch)
    model, stream = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE)), io.StringIO()
    tg.Trainer(model, TRAIN, VALIDATION, tg.TrainingConfig(**QUICK), tmp_path, stream=stream).run()
    assert cell.outputs == []
    assert len(stream.getvalue().splitlines()) == 5


def test_a_bar_of_other_work_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = running_in(monkeypatch)
    assert list(console.bar(range(3), "scoring <b>")) == [0, 1, 2]
    (states,) = cell.outputs
    assert states[0]["text/html"].startswith("<div>scoring &lt;b&gt;:   0% <progress ")
    assert states[-1] == {"text/html": "", "text/plain": ""}
    list(console.bar(range(3), "scoring", shown=False))
    assert len(cell.outputs) == 1


def test_bytes_whose_number_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = running_in(monkeypatch)
    with console.byte_bar(None, "reading") as bar:
        bar.update(5000)
        assert cell.outputs == []  # it appears after two seconds
        bar.start_t -= 3
        bar.last_print_t -= 3
        bar.update(5000)
        assert "reading: 10.0kB [" in cell.outputs[0][-1]["text/html"]
    assert cell.outputs[0][-1]["text/html"] == ""


def test_a_lost_connection_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = running_in(monkeypatch)

    def fails(*arguments: Any, **options: Any) -> None:
        raise OSError("the socket is closed")

    monkeypatch.setattr(cell, "display", fails)
    assert list(console.bar(range(3), "scoring")) == [0, 1, 2]


def test_stderr_that_goes_elsewhere_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = running_in(monkeypatch)
    assert console.in_notebook()
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # %%capture, contextlib.redirect_stderr
    assert not console.in_notebook()
    list(console.bar(range(3), "scoring"))
    assert cell.outputs == []


@pytest.mark.slow
def test_nothing_imports_ipython_outside_of_a_notebook() -> None:
    code = (
        "import sys, tinygpt as tg; from tinygpt import console\n"
        "assert not {'tqdm', 'tinygpt.training', 'tinygpt.nn'} & set(sys.modules)\n"
        "list(console.bar(range(3), 'scoring')); tg.Trainer; tg.TrainingConfig()\n"
        "assert tg.Trainer is tg.training.Trainer and tg.TrainingConfig is tg.training.TrainingConfig\n"
        "assert not {'IPython', 'ipykernel', 'ipywidgets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=ENVIRONMENT)
