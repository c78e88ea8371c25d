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

from ..errors import UsageError
from ..ops.cross_entropy import IGNORE_INDEX


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
