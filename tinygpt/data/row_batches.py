"""Batches of rows of different lengths.

Each row occurs once per epoch. Rows are shuffled, sorted by length within pools of several batches, and cut into steps,
which are shuffled too. So rows of similar length share a batch, which needs little padding, and the order stays random.
The rows of a step depend only on the seed and the index of the step, however many batches the step is cut into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..checks import whole_number
from ..errors import UsageError
from ..random import Generator

# RNG streams that nothing else in a run uses (`batches.py`): one for each epoch, one for the split.
_FIRST_STREAM, SPLIT_STREAM = 1 << 63, (1 << 64) - 1
_POOL = 32  # steps whose rows are sorted by length together

Collate = Callable[[Sequence[Any]], tuple[np.ndarray, ...]]


class RowBatches:
    """Batch i is part i % parts of step i // parts; a step has batch_size * parts rows, or fewer at an epoch's end.

    examples: N objects that have a length. collate: turns some of them into arrays. varied: replaces `examples[row]` in
    an epoch by an example of about the same length, which must depend only on row and epoch. Raises UsageError without
    examples.
    """

    def __init__(
        self, examples: Sequence[Any], batch_size: int, parts: int, seed: int, collate: Collate,
        varied: Callable[[int, int], Any] | None = None,
    ) -> None:  # fmt: skip
        if not examples:
            raise UsageError("there are no rows to train on")
        self.examples, self.collate, self.varied = examples, collate, varied
        self.parts, self.seed = whole_number("batches", "parts", parts), Generator(seed).seed
        rows = whole_number("batches", "batch_size", batch_size) * self.parts
        self.steps_per_epoch = -(-len(examples) // rows)
        self.lengths = np.array([len(example) for example in examples])  # (N,)
        self._epoch, self._steps = -1, list[np.ndarray]()

    def batch(self, index: int) -> tuple[np.ndarray, ...]:
        """The arrays of batch `index`. It has no rows if a step has fewer rows than parts."""
        step, part = divmod(whole_number("batches", "index", index, at_least=0), self.parts)
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._steps = epoch, self._order(epoch)
        rows = np.array_split(self._steps[position], self.parts)[part]
        if self.varied is not None:
            return self.collate([self.varied(int(row), epoch) for row in rows])
        return self.collate([self.examples[row] for row in rows])

    def _order(self, epoch: int) -> list[np.ndarray]:
        """The rows of each step of an epoch."""
        generator, N = Generator(self.seed, _FIRST_STREAM + epoch), len(self.examples)
        shuffled = np.argsort(generator.uniform(N), kind="stable")  # (N,)
        pool = -(-N * _POOL // self.steps_per_epoch)
        by_length = [
            part[np.argsort(self.lengths[part], kind="stable")]
            for part in (shuffled[begin : begin + pool] for begin in range(0, N, pool))
        ]
        steps = np.array_split(np.concatenate(by_length), self.steps_per_epoch)
        return [steps[i] for i in np.argsort(generator.uniform(len(steps)), kind="stable")]


class AllRows:
    """Every row once, in batches of rows of similar length. count: only this many batches, drawn once; 0: all rows."""

    def __init__(self, examples: Sequence[Any], batch_size: int, collate: Collate, count: int = 0) -> None:
        if not examples:
            raise UsageError("there are no rows to evaluate on")
        batch_size = whole_number("rows", "batch_size", batch_size)
        if count:
            chosen = np.argsort(Generator(0, SPLIT_STREAM).uniform(len(examples)), kind="stable")[: count * batch_size]
            examples = [examples[i] for i in sorted(chosen)]
        self.examples = sorted(examples, key=len)
        self.batch_size, self.collate = batch_size, collate

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for begin in range(0, len(self.examples), self.batch_size):
            yield self.collate(self.examples[begin : begin + self.batch_size])
