"""A step that is computed in several batches has the loss and the gradient of one batch that holds them all.

The loss of a step is the mean over all its targets. Batch i has n_i targets that count (those of -100 don't) and the
mean loss loss_i, so with N = n_1 + ... + n_k

    loss = sum over i of n_i / N * loss_i

The mean of the batches' means is something else as soon as they differ in n_i: a batch with few targets would weigh as
much as one with many. All targets are at hand before the first forward pass, so each batch is weighted as it is
computed:

    weight_i = k * n_i / N           the gradients of weight_i * loss_i add up to k times the step's gradient

and the optimizer divides by k, in the one factor that it multiplies gradients by anyway. Where all batches have as many
targets, as with whole windows of a text, every weight is exactly 1 and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UsageError
from ..ops.cross_entropy import IGNORE_INDEX


def count_targets(targets: Any) -> int:
    """How many of `targets`, an array of integers, the loss is a mean over."""
    return int((targets != IGNORE_INDEX).sum())


def batch_weights(where: str, targets: Sequence[Any]) -> list[float]:
    """The weights of a step's batches, from the targets of each, (B, T); their mean is 1.

    0 for a batch that is to be left out, as it has no targets. Raises UsageError when none of the batches has any: such
    a step has no loss.
    """
    counts = [count_targets(batch) for batch in targets]
    total = sum(counts)
    if total == 0:
        raise UsageError(
            f"{where}: there is no target to learn from: all are {IGNORE_INDEX}, which the loss leaves out; leave such "
            "rows out of the data"
        )
    return [len(counts) * count / total for count in counts]


def accumulate(where: str, batches: Sequence[tuple[Any, Any]], work: Callable[[Any, Any, float], Any]) -> float:
    """Let `work(inputs, targets, weight)` add up the gradients of a step's batches; the loss over the step's targets.

    work: adds the gradients of weight * the batch's loss to the parameters', and returns that loss, a tensor. The
    losses are read when all is launched, so that a GPU is not waited for in between.
    """
    weights = batch_weights(where, [targets for _, targets in batches])
    weighted = [(weight, *batch) for weight, batch in zip(weights, batches, strict=True) if weight]
    losses = [(weight, work(inputs, targets, weight)) for weight, inputs, targets in weighted]
    return sum(weight * float(loss.item()) for weight, loss in losses) / len(batches)
