"""One step: the gradients of its batches, clipped, and the update of the weights.

The loss is read at every step, because an update from a NaN loss would ruin the weights. That costs nothing on a CPU:
the norm of the gradients, read at the same time, waits for the same results. On a GPU, where it would cost, both are
read one step late, and the GPU itself leaves out an update whose norm is not finite (`late_steps.py`). In float16 the
loss is scaled, and a step in which this overflows is skipped (`loss_scale.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...graph import NonFiniteError, detect_anomaly
from ...optim import clip_coefficient
from ..divergence import diverged, first_cause

if TYPE_CHECKING:
    from ..loop import Trainer


class Steps:
    """Takes the steps of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def step(self) -> float:
        """One update of the weights; returns the loss before it. Raises DivergedError."""
        trainer = self.trainer
        random_state = trainer.model.generator.state_dict()
        try:
            with detect_anomaly(trainer.config.detect_anomaly):
                loss, norm = trainer.accumulation.compute()
        except NonFiniteError as error:
            raise diverged(trainer, str(error)) from error
        except Exception:  # such as MemoryError: the weights are still those of the last step
            trainer.save_as_before(random_state)
            raise
        with trainer.urgent.changing():
            self._take(loss, norm, random_state)
        return loss

    def _take(self, loss: float, norm: float, random_state: Any) -> None:
        """Update the weights with the gradients at hand, unless these are not finite. Raises DivergedError."""
        trainer, state = self.trainer, self.trainer.state
        trainer.optimizer.lr = trainer.schedule(state.step)
        if math.isfinite(loss) and math.isfinite(norm):
            trainer.watch.before_update(trainer)
            self.update(norm)
            trainer.grad_norm = norm
        elif math.isfinite(loss) and trainer.loss_scale.lower():
            trainer.grad_norm = None
        else:
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradients' norm is {norm}"
            raise diverged(trainer, f"{what}; {first_cause(trainer, random_state)}")
        trainer.optimizer.zero_grad()
        state.step += 1
        state.losses.append(loss)

    def update(self, norm: float) -> None:
        """Clip the gradient and update the weights. norm: of the step's gradient."""
        trainer = self.trainer
        scale = trainer.accumulation.scale
        if trainer.config.grad_clip > 0:
            scale *= clip_coefficient(norm, trainer.config.grad_clip)
        trainer.optimizer.step(grad_scale=scale)
        if trainer.average is not None:
            trainer.average.update()
        trainer.loss_scale.raise_after_good_step()

    def settle(self) -> None:
        """Read the step that is still in flight, if there is one. Raises DivergedError."""
