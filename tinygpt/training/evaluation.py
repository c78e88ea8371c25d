"""The loss on text that was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .. import console
from ..data import RandomBatches, SequentialBatches
from ..errors import UsageError
from ..gpt import GPT
from ..graph import no_grad
from .accumulation import count_targets

Batches = Iterable[tuple[np.ndarray, np.ndarray]]

# Runs of one batch size look at the same part of a text, whatever their own seed, so that their losses can be compared.
_SEED = 1488


class FixedBatches:
    """`count` batches of windows at random places, the same ones each time it is iterated."""

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, count: int) -> None:
        self.batches = RandomBatches(tokens, batch_size, block_size, seed=_SEED)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.batches.batch(index) for index in range(self.count))


def mean_loss(model: GPT, batches: Batches) -> float:
    """The mean cross-entropy over all targets of all batches, without dropout; targets of -100 do not count.

    Raises UsageError when there is no target that counts.
    """
    total, count = 0.0, 0
    with model.evaluating(), no_grad():
        for inputs, targets in batches:
            number = count_targets(targets)
            if number:
                total += number * float(model.loss(inputs, targets).item())
                count += number
    if count == 0:
        raise UsageError("mean_loss: there is no target to take the mean over: all are -100, or there are no batches")
    return total / count


def evaluate(model: GPT, tokens: np.ndarray, batch_size: int = 12, progress: bool = False) -> float:
    """The loss over the whole of `tokens`, shape (N,): each but the first is predicted once.

    The text is cut into stretches of the model's block size, so a token has up to that many before it to be
    predicted from. progress: show a bar on a terminal.
    Raises UsageError when the text is shorter than the block.
    """
    batches = SequentialBatches(tokens, batch_size, model.config.block_size)
    return mean_loss(model, console.bar(batches, "the whole text", progress))
