"""Batches: windows of the token sequence as inputs, with the following tokens as targets.

`RandomBatches` draws windows at random positions, for training; `DataLoader` (`loader.py`) returns each window once per
epoch. `SequentialBatches` covers the text once, for the loss over a whole validation text. All of them read only the
windows they return from a memory-mapped file.

If a text consists of documents, `tokens.end_token`, which `open_tokens` and `split` set, or the argument `end_token` is
the id of the token that ends each of them. No window then reaches from one document into another (`windows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..checks import check_tokens, whole_number
from ..errors import RangeError, UsageError
from ..ops.cross_entropy import IGNORE_INDEX
from ..random import Generator
from .packing import PackedRows
from .windows import DocumentWindows

# Batch `step` draws from stream 2**63 + step. Initial weights and dropout masks use streams from 0 up, so a run
# that uses one seed for everything never draws the same random words twice.
FIRST_STREAM = 1 << 63


class RandomBatches:
    """Windows at independent, uniformly random positions. The batch of a step depends only on the seed and the step.

    So there is no state to save: a resumed run gets the same batches as an uninterrupted one.
    padded: whether rows may have targets of -100 at their end, because documents are shorter than the block. pack:
    draw among rows of several documents (`packing.py`).
    """

    def __init__(
        self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int = 0, end_token: int | None = None,
        *, pack: bool = False,
    ) -> None:  # fmt: skip
        self.tokens = check_tokens(tokens)
        self.batch_size = whole_number("batches", "batch_size", batch_size)
        self.block_size = whole_number("batches", "block_size", block_size)
        self.seed = Generator(seed).seed
        self.windows = windows_of(self.tokens, self.block_size, end_token, pack)
        self.padded = self.windows is not None and self.windows.padded

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """`(inputs, targets)`: int64, shapes (B, T) and (B, T); `targets[b, t]` follows `inputs[b, t]`."""
        generator = Generator(self.seed, stream=FIRST_STREAM + whole_number("batches", "step", step, at_least=0))
        if self.windows is not None:
            drawn = generator.uniform((2, self.batch_size))
            return self.windows.random((drawn[0] * self.windows.count).astype(np.int64), drawn[1])
        starts = generator.integers(len(self.tokens) - self.block_size, (self.batch_size,))  # (B,)
        positions = starts[:, None] + np.arange(self.block_size + 1)  # (B, T+1)
        windows = np.asarray(self.tokens[positions]).astype(np.int64)  # (B, T+1)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


class SequentialBatches:
    """The whole text once, in order: each token except the first is a target exactly once.

    Rows are consecutive windows of `block_size` tokens. All batches have the same shape; the last one is padded
    with inputs 0 and targets -100, which the loss ignores. So to average over the text, weight each batch by
    its number of targets, `target_count` in total. Windows of documents are padded in the same way.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, end_token: int | None = None) -> None:
        self.tokens = check_tokens(tokens)
        self.batch_size = whole_number("batches", "batch_size", batch_size)
        self.block_size = whole_number("batches", "block_size", block_size)
        self.windows = windows_of(self.tokens, self.block_size, end_token)
        self.target_count = len(self.tokens) - 1 if self.windows is None else self.windows.target_count

    def __len__(self) -> int:
        if self.windows is not None:
            return -(-self.windows.count // self.batch_size)
        return -(-self.target_count // (self.batch_size * self.block_size))

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """`(inputs, targets)` of batch `index`: int64, shapes (B, T) and (B, T). Raises RangeError."""
        if not 0 <= index < len(self):
            raise RangeError(f"the batch index must be in 0 .. {len(self) - 1}, not {index}")
        shape = (self.batch_size, self.block_size)
        if self.windows is not None:
            return self._windows_of_documents(self.windows, index)
        begin = index * self.batch_size * self.block_size
        window = np.asarray(self.tokens[begin : begin + self.batch_size * self.block_size + 1])
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        inputs.reshape(-1)[: len(window) - 1] = window[:-1]
        targets.reshape(-1)[: len(window) - 1] = window[1:]
        return inputs, targets

    def _windows_of_documents(self, windows: DocumentWindows, index: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (self.batch_size, self.block_size)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        numbers = np.arange(index * self.batch_size, min((index + 1) * self.batch_size, windows.count))
        inputs[: len(numbers)], targets[: len(numbers)] = windows.sequential(numbers)
        return inputs, targets


def windows_of(
    tokens: np.ndarray, block_size: int, end_token: int | None, pack: bool = False
) -> DocumentWindows | None:
    """The windows of a text that consists of documents, packed or not; None for any other text.

    Raises UsageError for a text that is too short for a window, and for one that can't be packed.
    """
    end_token = getattr(tokens, "end_token", None) if end_token is None else end_token
    if end_token is not None:
        return (PackedRows if pack else DocumentWindows)(tokens, end_token, block_size)
    if pack:
        raise UsageError(
            "pack puts several documents into a row, but this text does not consist of documents that an end token "
            "separates: leave pack out"
        )
    _check_length(tokens, block_size)
    return None


def _check_length(tokens: np.ndarray, block_size: int) -> None:
    if len(tokens) < block_size + 1:
        raise UsageError(
            f"the text has {len(tokens)} tokens, but block_size {block_size} needs at least {block_size + 1} "
            "(each window and the token after it): use a longer text, a smaller block_size or, for a short "
            "validation text, a larger validation_fraction"
        )
