"""The sizes of the presets for `ops.py`, and the random arrays, which are the same for every contender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """The sizes of a training step: batch, time, channels, heads, vocabulary, and the number of parameters."""

    B: int
    T: int
    C: int
    H: int
    V: int
    parameters: int

    @property
    def N(self) -> int:
        return self.B * self.T

    @property
    def D(self) -> int:
        return self.C // self.H


PRESETS = {
    "tiny": Sizes(12, 64, 128, 4, 65, 800_000),
    "baby": Sizes(16, 256, 384, 6, 65, 10_600_000),
    "gpt2": Sizes(4, 256, 768, 12, 50257, 124_000_000),
}
DROPOUT = 0.2


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def ids(s: Sizes) -> np.ndarray:
    """Token ids (N,)."""
    return np.random.default_rng(3).integers(0, s.V, s.N)


# The matrix products of the linear layers: (M, K) and (K, N), and which matrix is stored transposed.
PRODUCTS: dict[str, Callable[[Sizes], tuple[Any, ...]]] = {
    "q, k, v": lambda s: ((s.N, s.C), (s.C, 3 * s.C)),
    "q, k, v: dx": lambda s: ((s.N, 3 * s.C), (3 * s.C, s.C), "right"),
    "q, k, v: dweight": lambda s: ((s.C, s.N), (s.N, 3 * s.C), "left"),
    "attention's output": lambda s: ((s.N, s.C), (s.C, s.C)),
    "attention's output: dx": lambda s: ((s.N, s.C), (s.C, s.C), "right"),
    "attention's output: dweight": lambda s: ((s.C, s.N), (s.N, s.C), "left"),
    "MLP, up": lambda s: ((s.N, s.C), (s.C, 4 * s.C)),
    "MLP, up: dx": lambda s: ((s.N, 4 * s.C), (4 * s.C, s.C), "right"),
    "MLP, up: dweight": lambda s: ((s.C, s.N), (s.N, 4 * s.C), "left"),
    "MLP, down": lambda s: ((s.N, 4 * s.C), (4 * s.C, s.C)),
    "MLP, down: dx": lambda s: ((s.N, s.C), (s.C, 4 * s.C), "right"),
    "MLP, down: dweight": lambda s: ((4 * s.C, s.N), (s.N, s.C), "left"),
    "head": lambda s: ((s.N, s.C), (s.C, s.V), "right"),
    "head: dx": lambda s: ((s.N, s.V), (s.V, s.C)),
    "head: dweight": lambda s: ((s.V, s.N), (s.N, s.C), "left"),
}
