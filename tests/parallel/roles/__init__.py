"""What the processes of a test do: python -m tests.parallel.roles NAME [ARGUMENT ...], under mpirun.

Each function with `@work` is run by all of them. An assertion that fails ends them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

WORK: dict[str, Callable[..., Any]] = {}


def work(function: Callable[..., Any]) -> Callable[..., Any]:
    WORK[function.__name__] = function
    return function


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def numbers_of(rank: int, count: int, dtype: Any = np.float32) -> np.ndarray:
    """Numbers of very different sizes, so that the order of additions shows in their sum."""
    rng = np.random.default_rng(rank)
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-4, 5, count)).astype(dtype)
