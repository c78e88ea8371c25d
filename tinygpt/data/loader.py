"""Epochs: every window of a text once per epoch, reshuffled for each epoch.

    loader = DataLoader(tokens, batch_size=12, block_size=64, seed=0)
    for epoch in range(3):
        for inputs, targets in loader.epoch(epoch): ...       # the last batch of an epoch may have fewer rows
    loader.batch(step)                                        # the epochs one after another, in full batches

There is no state to save. The windows of a batch depend only on the seed and the index of the batch, and the order of
an epoch is computed position by position (`permutation.py`), so no list of windows is needed, however long the text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..checks import check_tokens, whole_number
from ..random import Generator
from .batches import FIRST_STREAM, windows_of
from .permutation import Permutation
from .windows import DocumentWindows


class DataLoader:
    """Batches of windows of `tokens` (N,): inputs and targets, int64, (B, T) both, where -100 means no target.

    If the text consists of documents, its windows are those of `DocumentWindows` or, with `pack`, of `PackedRows`: each
    target occurs once per epoch. In any other text the windows follow each other without overlap, and fewer than
    `block_size` tokens at its ends are left over; each epoch draws where the first window begins.

    windows_per_epoch: their number. len(): the batches of an epoch, of which the last one may have fewer rows.
    target_count: the targets of an epoch. padded: whether rows may have targets of -100 at their end. shuffle: False
    for the order of the text in every epoch. Raises UsageError for a text that is too short.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        batch_size: int,
        block_size: int,
        seed: int = 0,
        end_token: int | None = None,
        *,
        pack: bool = False,
        shuffle: bool = True,
    ) -> None:
        self.tokens = check_tokens(tokens)
        self.batch_size = whole_number("batches", "batch_size", batch_size)
        block_size = whole_number("batches", "block_size", block_size)
        self.seed, self.shuffle = Generator(seed).seed, shuffle
        self.windows: DocumentWindows | StretchWindows = windows_of(
            self.tokens, block_size, end_token, pack
        ) or StretchWindows(self.tokens, block_size)
        self.windows_per_epoch, self.target_count = self.windows.count, self.windows.target_count
        self.padded = self.windows.padded
        self._orders: dict[int, Permutation] = {}  # of the epochs of the last batch

    def __len__(self) -> int:
        return -(-self.windows_per_epoch // self.batch_size)

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index`, counted over all epochs. The last batch of an epoch is filled up from the next epoch."""
        begin = whole_number("batches", "index", index, at_least=0) * self.batch_size
        return self._cut(np.arange(begin, begin + self.batch_size))

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of one epoch: each window once."""
        begin = whole_number("batches", "epoch", number, at_least=0) * self.windows_per_epoch
        end = begin + self.windows_per_epoch
        for first in range(begin, end, self.batch_size):
            yield self._cut(np.arange(first, min(first + self.batch_size, end)))

    def _cut(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows at these positions (B,), counted over all epochs."""
        epochs, numbers = np.divmod(places, self.windows_per_epoch)  # (B,)
        needed = np.unique(epochs).tolist()
        if self.shuffle:
            self._orders = {epoch: self._orders.get(epoch) or self._order(epoch) for epoch in needed}
            for epoch in needed:
                here = epochs == epoch
                numbers[here] = self._orders[epoch](numbers[here])
        if isinstance(self.windows, DocumentWindows):
            return self.windows.sequential(numbers)
        shifts = np.zeros(len(epochs), np.int64)
        if self.shuffle:
            for epoch in needed:
                shifts[epochs == epoch] = self._shift(epoch)
        return self.windows.shifted(numbers, shifts)

    def _order(self, epoch: int) -> Permutation:
        return Permutation(self.windows_per_epoch, self.seed, FIRST_STREAM + 2 * epoch)

    def _shift(self, epoch: int) -> int:
        """How many tokens at the beginning of the text are left out in an epoch."""
        free = self.windows.free + 1  # type: ignore[union-attr]
        return int(Generator(self.seed, FIRST_STREAM + 2 * epoch + 1).integers(free, (1,))[0])


class StretchWindows:
    """The windows of a text without documents: as many whole ones as fit. free: the number of targets left over."""

    padded = False

    def __init__(self, tokens: np.ndarray, block_size: int) -> None:
        self.tokens, self.block_size = tokens, block_size
        self.count, self.free = divmod(len(tokens) - 1, block_size)
        self.target_count = self.count * block_size

    def shifted(self, windows: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows of these numbers (B,), each moved by a number of tokens in 0 .. free: shifts (B,)."""
        starts = windows * self.block_size + shifts
        positions = starts[:, None] + np.arange(self.block_size + 1)  # (B, T+1)
        found = np.asarray(self.tokens[positions]).astype(np.int64)
        return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, 1:])
