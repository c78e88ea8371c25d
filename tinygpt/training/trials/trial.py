"""Trial steps: steps of a run that leave the trainer as it was.

    with on_trial(trainer):
        loss = trial_step(trainer, lr)

Weights, optimizer, average, random state, loss scale and step are restored bit for bit, whatever happens in between.
Nothing is written: neither metrics nor checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...checkpoint import Checkpoint
from ..storage.saving import checkpoint_of, restore
from ..storage.state import TrainState

if TYPE_CHECKING:
    from ..loop import Trainer


@contextlib.contextmanager
def on_trial(trainer: Trainer) -> Iterator[None]:
    """Put the model in training mode and, at the end, the trainer back into its state. Holds a copy of that state."""
    now = checkpoint_of(trainer)
    before = Checkpoint(
        {name: np.array(array) for name, array in now.model.items()},  # checkpoint_of gives the arrays themselves
        {name: np.array(array) for name, array in now.optimizer.items()},
        now.state,
    )
    del now
    state = trainer.state  # a running loop holds this very object
    trainer.state = dataclasses.replace(state, losses=list(state.losses))
    kept = {name: getattr(trainer, name) for name in ("config", "schedule", "saved_at", "changed", "grad_norm")}
    lr = trainer.optimizer.lr
    try:
        with trainer.model.in_mode(True), trainer.model.compute_in(trainer.config.dtype):
            yield
    finally:
        trainer.optimizer.zero_grad()
        restore(trainer, before)
        for name, value in kept.items():
            setattr(trainer, name, value)
        trainer.state, trainer.optimizer.lr = state, lr


def trial_step(trainer: Trainer, lr: float | None = None) -> float:
    """One update of the weights, at this learning rate or the schedule's; returns the loss before it.

    The loss is NaN or infinite if the run diverges here; the weights are then not updated.
    """
    state: TrainState = trainer.state
    loss, norm = trainer.accumulation.compute()
    trainer.optimizer.lr = trainer.schedule(state.step) if lr is None else lr
    if math.isfinite(loss) and math.isfinite(norm):
        trainer.steps.update(norm)
    elif math.isfinite(loss) and not trainer.loss_scale.lower():
        loss = norm
    trainer.optimizer.zero_grad()
    state.step += 1
    return loss
