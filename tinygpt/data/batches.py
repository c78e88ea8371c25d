"""Batches: windows of the token sequence, with the next tokens as targets.

For training, windows at random places (`RandomBatches`); for a loss over the whole validation text, every
place once (`SequentialBatches`). Neither reads more of a memory-mapped file than the windows it hands out.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np

from ..checks import check_tokens
from ..errors import DtypeError, RangeError, UsageError
from ..random import Generator

IGNORED = -100  # a target that the loss leaves out

# Batch number `step` draws from stream 2**63 + step: initial weights and dropout masks count their streams
# from zero, so a run that uses one seed for everything never draws the same random words twice.
_FIRST_STREAM = 1 << 63


class RandomBatches:
    """Windows at independent, uniformly drawn places; batch number `step` depends on the seed and `step` alone.

    There is no position to save: a resumed run asks for the batch of its step and gets the one it would
    have got.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int = 0) -> None:
        self.tokens = check_tokens(tokens)
        self.batch_size = _integer("batch_size", batch_size, minimum=1)
        self.block_size = _integer("block_size", block_size, minimum=1)
        self.seed = Generator(seed).seed
        _check_length(self.tokens, self.block_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """`(inputs, targets)`: int64, shapes (B, T) and (B, T); `targets[b, t]` follows `inputs[b, t]`."""
        generator = Generator(self.seed, stream=_FIRST_STREAM + _integer("step", step, minimum=0))
        starts = generator.integers(len(self.tokens) - self.block_size, (self.batch_size,))  # (B,)
        places = starts[:, None] + np.arange(self.block_size + 1)  # (B, T+1)
        windows = np.asarray(self.tokens[places]).astype(np.int64)  # (B, T+1)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


class SequentialBatches:
    """The whole text once, in order: each token but the first is a target exactly once.

    Rows are consecutive stretches of `block_size` tokens. All batches have the same shape; where the text
    ends, the rest of the last one has inputs 0 and targets -100, which the loss leaves out. A mean over the
    text therefore weights each batch by its number of targets: there are `target_count` in all.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int) -> None:
        self.tokens = check_tokens(tokens)
        self.batch_size = _integer("batch_size", batch_size, minimum=1)
        self.block_size = _integer("block_size", block_size, minimum=1)
        _check_length(self.tokens, self.block_size)
        self.target_count = len(self.tokens) - 1

    def __len__(self) -> int:
        return -(-self.target_count // (self.batch_size * self.block_size))

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """`(inputs, targets)` of batch number `index`: int64, shapes (B, T) and (B, T)."""
        if not 0 <= index < len(self):
            raise RangeError(f"there are {len(self)} batches, numbered from 0: no batch {index}")
        shape = (self.batch_size, self.block_size)
        begin = index * self.batch_size * self.block_size
        stretch = np.asarray(self.tokens[begin : begin + self.batch_size * self.block_size + 1])
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        inputs.reshape(-1)[: len(stretch) - 1] = stretch[:-1]
        targets.reshape(-1)[: len(stretch) - 1] = stretch[1:]
        return inputs, targets


def _integer(name: str, value: int, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise DtypeError(f"{name} is an integer, not {value!r}") from None
    if not minimum <= number < _FIRST_STREAM:
        raise RangeError(f"{name} is {minimum} or more and less than 2**63, not {number}")
    return number


def _check_length(tokens: np.ndarray, block_size: int) -> None:
    if len(tokens) < block_size + 1:
        raise UsageError(
            f"the text has {len(tokens)} tokens, but block_size {block_size} needs at least {block_size + 1} "
            "(each window and the token after it): use a longer text, a smaller block_size or, for a short "
            "validation text, a larger validation_fraction"
        )
