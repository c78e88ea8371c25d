"""Norm, clipping and AdamW in the CUDA graph of a step, on the stand-in, with the kernels: see test_graphs.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cuda import emulator, standin
from tests.cuda.graph_runs import DEVICE, kernel_body
from tests.training.helpers import make_trainer, outcome
from tinygpt.errors import UsageError
from tinygpt.training.step.late_steps import LateSteps
from tinygpt.training.step.update import Update

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)"),
]
SETTINGS: dict[str, Any] = {"steps": 9, "decay_steps": 20, "eval_every": 50}


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with standin.recording(monkeypatch, kernel_body):
        yield


def updates_by_python(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The replays that had happened whenever Python launched an update from now on."""
    found: list[int] = []
    usual = Update.__call__

    def call(self: Update) -> None:
        found.append(self.trainer.accumulation.graphed_step.replays)
        usual(self)

    monkeypatch.setattr(Update, "__call__", call)
    return found


def assert_same(folder: Path, other: Path) -> None:
    """All that the runs leave behind but their settings."""
    found, expected = outcome(folder), outcome(other)
    assert [name for name in expected if "state" not in name and found[name] != expected[name]] == []


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"gradient_accumulation": 2, "grad_clip": 0.0}])
def test_a_run_has_the_bits_of_one_that_waits_for_each_norm(tmp_path: Path, monkeypatch: Any, settings: Any) -> None:
    """Losses, norms, weights, state, under a learning rate that changes; in the end Python launches no update."""
    made = updates_by_python(monkeypatch)
    trainer = make_trainer(tmp_path / "on", cuda_graphs="on", **(SETTINGS | settings))
    trainer.run()
    assert isinstance(trainer.steps, LateSteps)
    replays = trainer.accumulation.graphed_step.replays
    assert replays >= 4
    assert max(made) <= replays - 3
    assert {slot.step for slot in trainer.optimizer.slots} == {9}
    monkeypatch.setattr("tinygpt.training.loop.steps_of", lambda trainer: trainer.steps)
    make_trainer(tmp_path / "off", cuda_graphs="off", **(SETTINGS | settings)).run()
    assert_same(tmp_path / "on", tmp_path / "off")


def test_a_replayed_step_is_one_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels are those of a step launched by Python, and Python launches none."""
    trainer = make_trainer(tmp_path, cuda_graphs="on", **SETTINGS)
    steps = LateSteps(trainer)
    launched = []
    for _ in range(6):
        DEVICE.launched.clear()
        steps.step()
        launched.append([kernel for _, kernel in DEVICE.launched])
    monkeypatch.setattr(trainer.accumulation.graphed_step, "work", None)
    monkeypatch.setattr(trainer.optimizer, "step", None)
    DEVICE.launched.clear()
    steps.step()
    assert [kernel for _, kernel in DEVICE.launched] == launched[-1]
    assert launched[-1][-1].startswith("adamw_update")
    assert sorted(launched[-1]) == sorted(launched[1])  # of a step that ran eagerly
    steps.settle()


def test_rates_that_were_recorded_as_numbers_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is no input: it would be a constant of the graph."""
    usual = Update.__call__

    def call(self: Update) -> None:
        numbers, self.numbers = self.numbers, self.numbers.copy()
        usual(self)
        self.numbers = numbers

    monkeypatch.setattr(Update, "__call__", call)
    with pytest.raises(UsageError, match="did not give the same bits"):
        make_trainer(tmp_path, cuda_graphs="on", **SETTINGS).run()


def test_without_memory_to_compare_python_launches_the_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = updates_by_python(monkeypatch)
    usual = Update.arrays

    class Huge:
        def copy(self) -> Any:
            raise MemoryError("no memory today")

    monkeypatch.setattr(Update, "arrays", lambda self: [*usual(self), Huge()])
    trainer = make_trainer(tmp_path / "on", cuda_graphs="on", **SETTINGS)
    trainer.run()
    assert trainer.accumulation.graphed_step.replays >= 2
    assert max(made) == trainer.accumulation.graphed_step.replays
    make_trainer(tmp_path / "off", cuda_graphs="off", **SETTINGS).run()
    assert_same(tmp_path / "on", tmp_path / "off")


def test_a_parameter_without_a_gradient_or_with_settings_of_its_own_keeps_the_update_out(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, cuda_graphs="off", **SETTINGS)
    update = Update(trainer)
    assert not update.recordable  # nothing is known
    for parameter in trainer.parameters:
        parameter.grad = standin.on_gpu(parameter.data.get())
    update.prepare()
    update()
    assert update.recordable
    trainer.parameters[0].grad = None
    update.prepare()
    update()
    assert not update.recordable
    assert sorted({slot.step for slot in trainer.optimizer.slots}) == [1, 2]
    trainer.optimizer.slots[0].settings["betas"] = (0.5, 0.5)
    assert not Update(trainer).alike
