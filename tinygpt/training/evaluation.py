"""The loss on text that was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data import RandomBatches, SequentialBatches
from ..data.batches import IGNORED
from ..function import no_grad
from ..gpt import GPT

Batches = Iterable[tuple[np.ndarray, np.ndarray]]

# Runs of one batch size look at the same part of a text, whatever their own seed, so that their losses can be compared.
_SEED = 1488


class FixedPart:
    """`count` batches of windows at random places, the same ones each time it is iterated."""

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, count: int) -> None:
        self.batches = RandomBatches(tokens, batch_size, block_size, seed=_SEED)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.batches.batch(index) for index in range(self.count))


def mean_loss(model: GPT, batches: Batches) -> float:
    """The mean cross-entropy over all targets of all batches, without dropout; targets of -100 do not count."""
    total, count = 0.0, 0
    training = model.training
    model.eval()
    try:
        with no_grad():
            for inputs, targets in batches:
                number = int(np.count_nonzero(targets != IGNORED))
                total += number * float(model.loss(inputs, targets).item())
                count += number
    finally:
        model.train(training)
    return total / count


def evaluate(model: GPT, tokens: np.ndarray, batch_size: int = 12, progress: bool = False) -> float:
    """The loss over the whole of `tokens`, shape (N,): each but the first is predicted once.

    The text is cut into stretches of the model's block size, so a token has up to that many before it to be
    predicted from. progress: show a bar on a terminal.
    Raises UsageError when the text is shorter than the block.
    """
    batches: Any = SequentialBatches(tokens, batch_size, model.config.block_size)
    if progress:
        batches = tqdm(batches, desc="the whole text", leave=False, disable=None)  # None: only on a terminal
    return mean_loss(model, batches)
