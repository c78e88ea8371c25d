"""The loss on text that the model was not trained on."""

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

# Fixed, not the run's seed: runs of the same batch size evaluate on the same windows, so their losses are comparable.
_SEED = 1488


class FixedBatches:
    """`count` batches of random windows, the same ones on every iteration."""

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, count: int) -> None:
        self.batches = RandomBatches(tokens, batch_size, block_size, seed=_SEED)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.batches.batch(index) for index in range(self.count))


def mean_loss(model: GPT, batches: Batches) -> float:
    """The mean cross-entropy over all targets of all batches, without dropout. Targets of -100 are ignored.

    Raises UsageError if there are no other targets.
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
    """The loss over all of `tokens`, shape (N,): each token except the first is predicted once.

    The text is split into consecutive windows of block_size tokens, and a token is predicted from those before it in
    its window. progress: show a progress bar on a terminal.
    Raises UsageError if the text is shorter than the block.
    """
    batches = SequentialBatches(tokens, batch_size, model.config.block_size)
    return mean_loss(model, console.bar(batches, "the whole text", progress))
