"""Gradient accumulation: a step computed in several batches has the loss and the gradient of one large batch.

The loss of a step is the mean over all its targets. Batch i has n_i targets (not counting -100) and the mean loss
loss_i, so with N = n_1 + ... + n_k

    loss = sum over i of n_i / N * loss_i

The mean of the batch means would differ as soon as the n_i do: a batch with few targets would weigh as much as one
with many. All targets are known before the first forward pass, so each batch is weighted as it is computed:

    weight_i = k * n_i / N           the gradients of weight_i * loss_i add up to k times the step's gradient

and the optimizer divides by k, as part of the factor that it multiplies gradients by anyway. If all batches have the
same number of targets, as with full windows of a text, every weight is exactly 1 and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...ops.cast import keep_rounded
from ...ops.cross_entropy import IGNORE_INDEX
from ...tensor import Tensor
from ..objective import Objective
from .graphed_step import GraphedStep, Update
from .planned_step import PlannedStep

if TYPE_CHECKING:
    from ..loop import Trainer


class Accumulation:
    """The gradients of a trainer's steps.

    A step has several parts. A part is one process's share of one batch: the whole batch if there is only one process.
    The accumulated gradients are (number of parts) * (loss scale) times those of the step's loss; `scale` is the factor
    that undoes this.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        model = trainer.model
        work = partial(trainer.objective.forward_and_backward, model)
        self.planned_step = PlannedStep(model, work, _is_plain(trainer.objective))
        self.graphed_step = GraphedStep(model, self.planned_step, trainer.config.cuda_graphs)

    @property
    def parts(self) -> int:
        return self.trainer.config.gradient_accumulation * self.trainer.share.size

    @property
    def scale(self) -> float:
        """The factor that makes the accumulated gradients those of the step's loss."""
        return 1.0 / (self.parts * self.trainer.loss_scale.scale)

    def compute(self) -> tuple[float, float]:
        """Accumulate the gradients of a step -> its loss and the norm of its gradient, without the factors.

        Raises UsageError if no batch has a target.
        """
        losses = self.launch()
        # Read after everything is launched, so that the host does not wait for a GPU in between.
        share, here = self.trainer.share, sum(weight * float(loss.item()) for weight, loss in losses) / self.parts
        share.sum_gradients()
        return share.sum_loss(here), share.grad_norm() / (self.parts * self.trainer.loss_scale.scale)

    def launch(self, update: Update | None = None) -> list[tuple[float, Tensor]]:
        """Forward and backward pass of this process's part of each batch: (weight, loss) for each that has targets.

        update: follows the last one, in the same CUDA graph if there is one.
        """
        trainer, share, graphed_step = self.trainer, self.trainer.share, self.graphed_step
        step, objective, count = trainer.state.step, trainer.objective, trainer.config.gradient_accumulation
        self.planned_step.wanted &= _is_plain(objective)
        keep_rounded(trainer.model, trainer.optimizer)
        batches = [trainer.batches.batch(step * count + index) for index in range(count)]
        counts = [number for batch in batches for number in share.counts(batch, objective.count)]
        weights = batch_weights(f"step {step}", counts)[share.rank :: share.size]
        last = max((index for index, weight in enumerate(weights) if weight), default=-1)
        losses = []
        for index, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            if weight > 0:
                # A graph is recorded for one weight. One other than 1 hardly occurs twice, so it is not recorded.
                graphed = objective.same_shapes and weight == 1.0
                forward_and_backward = graphed_step if graphed else graphed_step.eager
                arguments = *share.rows(batch), trainer.loss_scale.scale * weight
                with share.computing(index == last and not graphed_step.wanted):
                    loss = forward_and_backward(*arguments, update=update if index == last else None)
                losses.append((weight, loss))
            elif any(counts[index * share.size : (index + 1) * share.size]):
                share.sit_out(partial(objective.loss, trainer.model, *batch))
        return losses


def _is_plain(objective: Objective) -> bool:
    """Whether the loss of a batch is the model's, so that a plan may be made of it."""
    return getattr(objective.loss, "__func__", None) is Objective.loss


def batch_weights(where: str, counts: Sequence[float]) -> list[float]:
    """The weights of a step's batches, from the number of targets in each. Their mean is 1.

    A batch without targets has weight 0 and must be skipped. Raises UsageError if no batch has a target: such a step
    has no loss.
    """
    total = sum(counts)
    if total == 0:
        raise UsageError(
            f"{where}: there is no target to learn from: all are {IGNORE_INDEX}, which the loss ignores; remove such "
            "rows from the data"
        )
    return [len(counts) * count / total for count in counts]
