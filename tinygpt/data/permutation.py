"""A random permutation of any number of items, each position of which is computed independently.

A shuffled list of the windows of a large text would take more memory than a training batch. A Feistel network permutes
2**(2 k) numbers, however simple its round function is, so with keys drawn from a seed it gives an order without a list.
If the count is not a power of four, numbers that fall outside are sent through again until they fall inside ("cycle
walking"): fewer than four times on average.

Source: Black, Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, sections 3 and 4. The round function is
the finalizer of MurmurHash3 (Appleby, 2011). It is good enough for shuffling, not for cryptography.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import whole_number
from ..random import words

_ROUNDS = 6  # four make a Feistel network pseudorandom; the halves of a few dozen numbers are small, so two more


class Permutation:
    """One order of 0 .. count - 1 for each seed and stream. Raises UsageError for a count below 1."""

    def __init__(self, count: int, seed: int, stream: int) -> None:
        self.count = whole_number("permutation", "count", count)
        self._half = np.uint32(max(1, -(-(self.count - 1).bit_length() // 2)))  # bits of each half
        self._mask = np.uint32((1 << int(self._half)) - 1)
        self._keys = words(seed, stream, 1, _ROUNDS)[0]  # (rounds,) uint32

    def __call__(self, places: Any) -> np.ndarray:
        """The items at these positions: integers in 0 .. count - 1, of any shape; returns int64."""
        found = self._once(np.asarray(places, np.uint64))
        outside = found >= self.count
        while outside.any():
            found[outside] = self._once(found[outside])
            outside = found >= self.count
        return found.astype(np.int64)

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        left = (numbers >> np.uint64(self._half)).astype(np.uint32)
        right = numbers.astype(np.uint32) & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left.astype(np.uint64) << np.uint64(self._half)) | right


def _mixed(word: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer of 32-bit words."""
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return word ^ (word >> np.uint32(16))
