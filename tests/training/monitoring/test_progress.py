"""The progress bar and the lines that a log file gets instead."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import pytest

from tests.training.helpers import make_trainer
from tinygpt.training.monitoring.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_steps_loss_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("tinygpt.training.monitoring.progress.time.perf_counter", lambda: float(next(clock)))
    progress = Progress(total=8, done=2, tokens_per_step=1500, stream=Terminal())
    progress.update(3, 2.25)  # one step in one second
    progress.line(3, "half-way")
    progress.update(5, 1.75)
    progress.close()
    shown = progress.stream.stream.getvalue()
    assert "half-way\n" in shown
    assert re.search(r"3/8 \[.*loss 2\.250, 1,500 tokens/s\]", shown)
    assert re.search(r"5/8 \[.*<.*loss 1\.750, 1,650 tokens/s\]\n$", shown)


def test_the_words_fit_a_line_of_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("tinygpt.training.monitoring.progress.time.perf_counter", iter(range(1000)).__next__)
    progress = Progress(total=50000, done=0, tokens_per_step=1234, stream=Terminal())
    progress.update(100, 2.25)
    progress.close()
    line = progress.stream.stream.getvalue().rstrip("\n").split("\r")[-1]
    assert len(line) <= 80
    assert line.rstrip().endswith("loss 2.250, 123,400 tokens/s]")


@pytest.mark.slow
def test_a_log_file_gets_lines_and_no_bar(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.run()
    lines = trainer.stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {step}" for step in (0, 5, 10, 15, 20)]


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "said"), [(1.0, True), (0.01, False)])
def test_a_long_first_evaluation_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, said: bool
) -> None:
    """Nothing else is said for so long. Later evaluations are no surprise."""
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr("tinygpt.training.evaluations.time.perf_counter", lambda: next(clock))
    trainer = make_trainer(tmp_path, eval_batches=30, steps=10)
    lines: list[str] = []
    monkeypatch.setattr(Progress, "line", lambda self, step, text: lines.append(text))
    trainer.run()
    assert [line for line in lines if "takes" in line] == said * [
        "step 0: an evaluation of 30 batches takes about 30 s"
    ]
    assert [line.split(":")[0] for line in lines if "loss" in line] == ["step 0", "step 5", "step 10"]
