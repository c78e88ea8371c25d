"""Batches: windows of the token sequence as inputs, with the following tokens as targets.

`RandomBatches` draws windows at random positions, for training. `SequentialBatches` covers the text once, for
the loss over a whole validation text. Both read only the windows they return from a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..checks import check_tokens, whole_number
from ..errors import RangeError, UsageError
from ..ops.cross_entropy import IGNORE_INDEX
from ..random import Generator

# Batch `step` draws from stream 2**63 + step. Initial weights and dropout masks use streams from 0 up, so a run
# that uses one seed for everything never draws the same random words twice.
_FIRST_STREAM = 1 << 63


class RandomBatches:
    """Windows at independent, uniformly random positions. The batch of a step depends only on the seed and the step.

    So there is no state to save: a resumed run gets the same batches as an uninterrupted one.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int = 0) -> None:
        self.tokens = check_tokens(tokens)
        self.batch_size = whole_number("batches", "batch_size", batch_size)
        self.block_size = whole_number("batches", "block_size", block_size)
        self.seed = Generator(seed).seed
        _check_length(self.tokens, self.block_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """`(inputs, targets)`: int64, shapes (B, T) and (B, T); `targets[b, t]` follows `inputs[b, t]`."""
        generator = Generator(self.seed, stream=_FIRST_STREAM + whole_number("batches", "step", step, at_least=0))
        starts = generator.integers(len(self.tokens) - self.block_size, (self.batch_size,))  # (B,)
        positions = starts[:, None] + np.arange(self.block_size + 1)  # (B, T+1)
        windows = np.asarray(self.tokens[positions]).astype(np.int64)  # (B, T+1)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


class SequentialBatches:
    """The whole text once, in order: each token except the first is a target exactly once.

    Rows are consecutive windows of `block_size` tokens. All batches have the same shape; the last one is padded
    with inputs 0 and targets -100, which the loss ignores. So to average over the text, weight each batch by
    its number of targets, `target_count` in total.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int) -> None:
        self.tokens = check_tokens(tokens)
        self.batch_size = whole_number("batches", "batch_size", batch_size)
        self.block_size = whole_number("batches", "block_size", block_size)
        _check_length(self.tokens, self.block_size)
        self.target_count = len(self.tokens) - 1

    def __len__(self) -> int:
        return -(-self.target_count // (self.batch_size * self.block_size))

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """`(inputs, targets)` of batch `index`: int64, shapes (B, T) and (B, T). Raises RangeError."""
        if not 0 <= index < len(self):
            raise RangeError(f"the batch index must be in 0 .. {len(self) - 1}, not {index}")
        shape = (self.batch_size, self.block_size)
        begin = index * self.batch_size * self.block_size
        window = np.asarray(self.tokens[begin : begin + self.batch_size * self.block_size + 1])
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        inputs.reshape(-1)[: len(window) - 1] = window[:-1]
        targets.reshape(-1)[: len(window) - 1] = window[1:]
        return inputs, targets


def _check_length(tokens: np.ndarray, block_size: int) -> None:
    if len(tokens) < block_size + 1:
        raise UsageError(
            f"the text has {len(tokens)} tokens, but block_size {block_size} needs at least {block_size + 1} "
            "(each window and the token after it): use a longer text, a smaller block_size or, for a short "
            "validation text, a larger validation_fraction"
        )
