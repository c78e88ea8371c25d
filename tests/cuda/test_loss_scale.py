"""float16's loss scale, in runs on the stand-in for CuPy: when it is raised and lowered, and what a step then does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda.precision import EPS, IDS, TARGETS, host, in_both, model
from tests.training.helpers import make_trainer
from tinygpt.training import DivergedError, LossScale, read_metrics
from tinygpt.training.step import loss_scale

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_stand_in")]


def scales(trainer: Any) -> list[float]:
    """The scale after each step of a run."""
    found: list[float] = []
    step = trainer.steps.step
    trainer.steps.step = lambda: (step(), found.append(trainer.loss_scale.scale))[0]
    trainer.run()
    return found


def test_a_gradient_that_is_infinite_costs_one_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, dtype="float16", log_every=1)
    real, seen = trainer.accumulation.compute, []

    def gradients() -> tuple[float, float]:
        loss, norm = real()
        seen.append([host(p.data).tobytes() for p in trainer.parameters])
        if trainer.state.step == 5:
            trainer.parameters[0].grad[0, 0] = np.inf
            norm = tg.optim.grad_norm(trainer.parameters)
        return loss, norm

    trainer.accumulation.compute = gradients  # type: ignore[method-assign]
    assert scales(trainer) == [2.0**16] * 5 + [2.0**15] * 15
    assert [a == b for a, b in itertools.pairwise(seen)] == [step == 5 for step in range(19)]  # weights as they were
    assert {slot.step for slot in trainer.optimizer.slots} == {19}
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["grad_norm"] is None for r in records] == [step == 5 for step in range(20)]
    assert [r["loss_scale"] for r in records] == [2.0**16] * 5 + [2.0**15] * 15


def test_the_norm_that_clipping_sees_is_of_gradients_not_scaled(tmp_path: Path) -> None:
    norms = []
    for name in ("float32", "float16"):
        make_trainer(tmp_path / name, steps=1, decay_steps=20, log_every=1, gradient_accumulation=2, dtype=name).run()
        norms += [r["grad_norm"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in r]
    assert norms[1] == pytest.approx(norms[0], rel=16 * EPS["float16"])


@in_both
def test_a_split_step_has_the_gradient_of_the_whole_in_16_bits(name: str, tmp_path: Path) -> None:
    """Batches with few targets and with many, under a loss scale: as near to float32's gradient as the whole batch."""
    inputs, targets = (np.tile(ids, (2, 1)) for ids in (IDS, TARGETS))
    targets[0, 1:], targets[1, 2:] = -100, -100
    exact = gradient_of(model(dropout=0.0), "float32", inputs, targets)
    whole = np.linalg.norm(gradient_of(model(dropout=0.0), name, inputs, targets) - exact)
    trainer = make_trainer(tmp_path, model=model(dropout=0.0), dtype=name, gradient_accumulation=2)
    halves = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    trainer.batches.batch = lambda index: halves[index % 2]  # type: ignore[method-assign]
    with trainer.model.compute_in(name):
        trainer.accumulation.compute()
    found = np.concatenate([host(p.grad).ravel() for p in trainer.parameters]) / (2 * trainer.loss_scale.scale)
    assert np.linalg.norm(found - exact) <= 2 * whole
    means = [gradient_of(model(dropout=0.0), "float32", *half) for half in halves]
    assert np.linalg.norm(sum(means) / 2 - exact) > 20 * whole  # what the mean of the means would be


def gradient_of(model: Any, name: str, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    scale = LossScale(name).scale
    with model.compute_in(name):
        model.loss(inputs, targets).backward(scale)
    return np.concatenate([host(p.grad).ravel() for p in model.parameters()]) / scale


def test_a_scale_too_large_comes_down_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "START", 2.0**40)
    trainer = make_trainer(tmp_path, dtype="float16", steps=40)
    found = scales(trainer)
    left_out = [scale != before for before, scale in itertools.pairwise([2.0**40, *found])]
    assert found == [2.0 ** (40 - sum(left_out[: i + 1])) for i in range(40)]
    assert all(left_out[:10])
    assert not any(left_out[30:])
    assert {slot.step for slot in trainer.optimizer.slots} == {40 - sum(left_out)}


def test_the_scale_is_doubled_after_2000_good_steps() -> None:
    scale = LossScale("float16")
    assert scale.lower()
    for _ in range(1999):
        scale.raise_after_good_step()
    assert scale.scale == 2.0**15
    scale.raise_after_good_step()
    assert (scale.scale, scale.good_steps) == (2.0**16, 0)
    for _ in range(1999):
        scale.raise_after_good_step()
    assert scale.lower()
    for _ in range(1999):
        scale.raise_after_good_step()
    assert scale.scale == 2.0**15  # in a row
    for _ in range(10 * 2000):
        scale.raise_after_good_step()
    assert scale.scale == 2.0**24


def test_the_scale_ends_at_one() -> None:
    scale = LossScale("float16")
    assert [scale.lower() for _ in range(18)] == [True] * 16 + [False] * 2
    assert scale.scale == 1.0


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_without_float16_there_is_no_scale(name: str) -> None:
    scale = LossScale(name)
    for _ in range(2000):
        scale.raise_after_good_step()
    assert (scale.scale, scale.lower(), scale.state_dict()) == (1.0, False, {})


@pytest.mark.parametrize("state", [{"scale": 0.5, "good_steps": 0}, {"scale": 2.0, "good_steps": -1}, {"scale": 2.0}])
def test_states_of_the_scale_that_make_no_sense(state: Any) -> None:
    with pytest.raises(tg.errors.UsageError, match=r"LossScale: (scale|good_steps) must be"):
        LossScale("float16").load_state_dict(state)


@pytest.mark.parametrize(("name", "steps"), [("float16", 17), ("bfloat16", 1)])
def test_gradients_that_no_scale_makes_finite_end_the_run(tmp_path: Path, name: str, steps: int) -> None:
    """In bfloat16, whose steps are read late, as in float16, whose scale must be known before the next step."""
    trainer = make_trainer(tmp_path, dtype=name, steps=40)
    graphed_step, calls = trainer.accumulation.graphed_step, []
    real = graphed_step.work

    def work(*batch: Any) -> Any:
        calls.append(0)
        loss = real(*batch)
        trainer.parameters[0].grad[0, 0] = np.inf
        return loss

    graphed_step.work = work
    with pytest.raises(DivergedError, match=rf"step {steps - 1} can't be computed: the gradients' norm is inf"):
        trainer.run()
    assert len(calls) == steps + 1  # once more to find the cause


def test_a_loss_that_is_not_finite_is_no_matter_of_scaling(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, dtype="float16")
    trainer.model.h[0].mlp.c_proj.weight.data[...] = 6e4  # overflows in the forward pass
    trainer.model.h[0].mlp.c_fc.bias.data[...] = 6e4
    with pytest.raises(DivergedError, match=r"step 0 can't be computed|validation loss"):
        trainer.run()
