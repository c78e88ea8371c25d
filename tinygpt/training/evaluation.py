"""The loss on text that the model was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .. import console
from ..data import RandomBatches, SequentialBatches
from ..errors import UsageError
from ..graph import no_grad
from ..language_model import LanguageModel
from ..ops.cross_entropy import IGNORE_INDEX
from ..parallel import Communicator

Batches = Iterable[tuple[np.ndarray, ...]]
ALONE = Communicator()

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


def count_targets(targets: np.ndarray) -> int:
    """How many of `targets`, an integer array, count in the mean: all but those that are -100."""
    return int((targets != IGNORE_INDEX).sum())


def mean_loss(
    model: Any,
    batches: Batches,
    loss: Callable[..., Any] | None = None,
    count: Callable[[Any], float] | None = None,
    team: Communicator = ALONE,
) -> float:
    """The mean cross-entropy over all targets of all batches, without dropout. Targets of -100 are ignored.

    loss, count: for another objective (`objective.py`). team: processes that take turns with the batches; all of them
    call this with the same batches, and get the same bits as one process. Raises UsageError if there are no other
    targets.
    """
    total, targets = 0.0, 0.0
    found: list[tuple[int, float, float]] = []  # (index, targets, loss) of the batches of this process
    with model.evaluating(), no_grad():
        for index, batch in enumerate(batches):
            number = count_targets(batch[1]) if count is None else count(batch)
            if number and index % team.size == team.rank:
                value = model.loss(*batch) if loss is None else loss(model, *batch)
                found.append((index, float(number), float(value.item())))
    for _, number, one in sorted(each for mine in team.gather_values(found) for each in mine):
        total += number * one
        targets += number
    if targets == 0:
        raise UsageError("mean_loss: there is no target to take the mean over: all are -100, or there are no batches")
    return total / targets


def evaluate(model: LanguageModel, tokens: np.ndarray, batch_size: int = 12, progress: bool = False) -> float:
    """The loss over all of `tokens`, shape (N,): each token except the first is predicted once.

    The text is split into consecutive windows of block_size tokens, and a token is predicted from those before it in
    its window. progress: show a progress bar on a terminal.
    Raises UsageError if the text is shorter than the block.
    """
    batches = SequentialBatches(tokens, batch_size, model.config.block_size)
    return mean_loss(model, console.bar(batches, "the whole text", progress))
