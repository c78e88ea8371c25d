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

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UsageError
from ..ops.cross_entropy import IGNORE_INDEX


def count_targets(targets: Any) -> int:
    """How many of `targets`, an integer array, count in the mean: all but those of -100."""
    return int((targets != IGNORE_INDEX).sum())


def batch_weights(where: str, targets: Sequence[Any], count: Callable[[Any], float] = count_targets) -> list[float]:
    """The weights of a step's batches, from the targets of each, (B, T). Their mean is 1.

    count: how many targets each has. A batch without targets has weight 0 and must be skipped. Raises UsageError if no
    batch has a target: such a step has no loss.
    """
    counts = [count(batch) for batch in targets]
    total = sum(counts)
    if total == 0:
        raise UsageError(
            f"{where}: there is no target to learn from: all are {IGNORE_INDEX}, which the loss ignores; remove such "
            "rows from the data"
        )
    return [len(counts) * number / total for number in counts]


def accumulate(
    where: str, batches: Sequence[Any], one_batch: Callable[[Any, float], Any], count: Callable[[Any], float]
) -> float:
    """Call `one_batch(batch, weight)` for each batch of a step; return the mean loss over all its targets.

    one_batch: adds the gradients of weight * loss to the parameters' and returns the loss, a tensor. The losses are
    read after everything is launched, so that the host does not wait for a GPU in between. count: the targets of a
    batch.
    """
    weights = batch_weights(where, batches, count)
    losses = [(weight, one_batch(batch, weight)) for weight, batch in zip(weights, batches, strict=True) if weight]
    return sum(weight * float(loss.item()) for weight, loss in losses) / len(batches)
