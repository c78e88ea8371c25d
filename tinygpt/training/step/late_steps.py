"""Steps on a GPU whose loss and norm are read one step late, so that the GPU never waits for the host.

A plain step waits twice: it reads the loss and the norm of the gradients, computes from the norm how much to clip, and
only then launches the update. The GPU idles meanwhile, and again while the next batch is drawn and its launches are
prepared: 6.6 of the 47 ms of a GPT-2 step on an H200. Here the norm becomes a factor on the GPU
(`optim.ScaleOnDevice`), the update is launched at once, and the host reads loss and norm of a step when it has launched
the next one. Norm, factor and update are a part of the step's CUDA graph if there is one (`update.py`); the learning
rate and what depends on the number of steps are copied to the GPU before each replay, as the batch is.

A loss that is not finite is noticed a step late, but it ruins nothing: its gradients' norm is not finite either, so the
factor is NaN, and the update changes no weights, nor does any later one. The run ends with the weights, the step
number and the random state from before the bad step, as a plain run does. `settle` reads the step in flight:
before an evaluation, a checkpoint and a line of metrics.

Several processes sum their gradients between the passes and the update, GPU to GPU, so the update is not a part of the
graph then. When the losses of a step are read they are summed on the host, and the processes learn whether to stop: a
step late, while the GPUs compute the next one.

It requires a GPU, AdamW without penalties whose state is not sharded, and hooks that do without each step's loss and
gradients (all but `--watch-layers`). It does not work with float16, whose loss scale must be known before the next
step; nor with an average of the weights, which would follow weights that were not updated; nor with `detect_anomaly`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import backends
from ..divergence import diverged, first_cause
from ..monitoring.watch import Watch
from .steps import Steps
from .update import Update

if TYPE_CHECKING:
    from ..loop import Trainer


class Pending(NamedTuple):
    """A step that was launched."""

    step: int
    random_state: Any  # before it
    weights: list[float]  # of its batches
    reading: Any  # a Reading of backends/cupy.py: the loss of each batch, and the state of ScaleOnDevice


def steps_of(trainer: Trainer) -> Steps:
    """What takes the steps of this trainer: LateSteps where they can be read late."""
    plain = (
        trainer.average is None
        and not trainer.loss_scale.active
        and not trainer.config.detect_anomaly
        and (type(trainer.watch) is Watch or trainer.watch.takes_late)
    )
    possible = trainer.parameters[0].backend == "cupy" and trainer.optimizer.takes_scale_on_device
    if plain and possible:
        return LateSteps(trainer)
    return Steps(trainer) if isinstance(trainer.steps, LateSteps) else trainer.steps


class LateSteps(Steps):
    """Takes the steps of a trainer, each read when the next one is launched."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.update_on_device = Update(trainer)
        self.pending: Pending | None = None
        self.loss: float | None = None  # the last one that was read

    def step(self) -> float:
        """Launch a step; return the loss of the one before it, or of this one if there is none."""
        trainer, state = self.trainer, self.trainer.state
        random_state = trainer.model.generator.state_dict()
        trainer.optimizer.lr = trainer.schedule(state.step)
        update, alone = self.update_on_device, trainer.share.size == 1
        update.prepare()
        try:
            losses = trainer.accumulation.launch(update if alone else None)
            if not alone:
                trainer.share.sum_gradients()
                update()
        except Exception:  # such as MemoryError: the weights are still those of the last step
            trainer.save_as_before(random_state)
            raise
        reading = backends.get("cupy").Reading([*(loss.data for _, loss in losses), update.scale.on_device])
        trainer.optimizer.zero_grad()
        before, self.pending = self.pending, Pending(state.step, random_state, [w for w, _ in losses], reading)
        state.step += 1
        if before is not None:
            self._read(before)
        if self.loss is None or state.step % trainer.config.log_every == 0:  # the metrics line would wait for it anyway
            self.settle()
        assert self.loss is not None
        return self.loss

    def settle(self) -> None:
        """Read the step that is still in flight. Raises DivergedError."""
        if self.pending is not None:
            before, self.pending = self.pending, None
            self._read(before)

    def _read(self, taken: Pending) -> None:
        *losses, (_, norm, _) = taken.reading.values()
        here = sum(weight * float(value) for weight, value in zip(taken.weights, losses, strict=True))
        loss = self.trainer.share.sum_loss(here / self.trainer.accumulation.parts)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(taken, loss, float(norm))
        self.loss, self.trainer.grad_norm = loss, float(norm)
        self.trainer.state.losses.append(loss)

    def _diverged(self, bad: Pending, loss: float, norm: float) -> Exception:
        """The error for a step. The trainer is as it was before it: no update since has changed the weights."""
        trainer = self.trainer
        for slot in trainer.optimizer.slots:
            slot.step -= trainer.state.step - bad.step
        trainer.state.step, self.pending = bad.step, None
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradients' norm is {norm}"
        return diverged(trainer, f"{what}; {first_cause(trainer, bad.random_state)}")
