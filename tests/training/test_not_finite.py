"""What is not finite: a loss, gradients or weights end the run, the operation is named, and nothing wrong is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.helpers import make_trainer
from tinygpt.training import (
    CheckpointFolder,
    DivergedError,
)


@pytest.mark.parametrize("detect", [False, True])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_operation(tmp_path: Path, detect: bool) -> None:
    trainer = make_trainer(tmp_path, detect_anomaly=detect)

    def spoil(record: dict[str, Any]) -> None:
        if record["step"] == 9 and "loss" in record:  # finite, but their product overflows float32
            trainer.model.h[1].mlp.c_fc.weight.data *= np.float32(1e30)
            trainer.model.h[1].mlp.c_proj.weight.data *= np.float32(1e30)

    trainer.callbacks.append(spoil)
    with pytest.raises(DivergedError, match=r"step 9 can't be computed") as caught:
        trainer.run()
    assert "Linear is the first operation to produce" in str(caught.value)
    assert "the checkpoint of step 8 is in" in str(caught.value)
    kept = CheckpointFolder(tmp_path).load()
    assert kept.step == 8
    assert all(np.isfinite(array).all() for array in kept.model.values())


def test_the_step_is_replayed_with_the_same_batch_and_random_numbers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    real, seen = trainer.accumulation.compute, []

    def gradients() -> tuple[float, float]:
        seen.append((trainer.state.step, trainer.model.generator.state_dict()))
        return float("nan"), real()[1]

    trainer.steps.step()
    trainer.accumulation.compute = gradients  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="the loss is nan; no single operation"):
        trainer.steps.step()
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0][1]["stream"] < trainer.model.generator.state_dict()["stream"]  # dropout has drawn from it


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, checkpoint_every=1)

    def spoil(record: dict[str, Any]) -> None:
        if record["step"] == 9 and "loss" in record:
            trainer.model.wpe.weight.data[3, 2] = np.nan

    trainer.callbacks.append(spoil)
    with pytest.raises(DivergedError, match=r"the weights wpe\.weight are not finite"):
        trainer.run()
    assert CheckpointFolder(tmp_path).load().step == 9  # saved before the callback was called


def test_a_step_that_goes_wrong_leaves_weights_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.model.wpe.weight.data[0, 0] = np.inf
    before = {name: array.copy() for name, array in trainer.model.state_dict().items()}
    with pytest.raises(DivergedError, match=r"the weights wpe\.weight are not finite"):
        trainer.steps.step()
    for name, array in trainer.model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
