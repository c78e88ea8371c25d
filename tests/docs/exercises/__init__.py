"""What the answers to the exercises of docs/worked are checked with. None of it is on a page.

    python -m tests.docs.exercises softmax mine.py     # checks your own answer: a file with the functions asked for

A check is handed the names that the answer defines and compares them with tinygpt's gradients or with differences, on
numbers that the page does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import tinygpt as tg
from tinygpt.typing import Array

Names = dict[str, Any]


class Check(NamedTuple):
    functions: tuple[str, ...]  # those that the exercise asks for
    run: Callable[[Names], None]


CHECKS: dict[str, Check] = {}


def check(operation: str, *functions: str) -> Callable[[Callable[[Names], None]], Callable[[Names], None]]:
    def add(run: Callable[[Names], None]) -> Callable[[Names], None]:
        assert operation not in CHECKS
        CHECKS[operation] = Check(functions, run)
        return run

    return add


def numbers(*shape: int, seed: int = 0) -> Array:
    """Random numbers that no page shows."""
    return np.random.default_rng([17, seed, *shape]).standard_normal(shape)


def gradients(function: Callable[..., Any], dy: Array, *arrays: Array) -> list[Array]:
    """The gradients of sum(function(*arrays) * dy), by the engine, in float64."""
    tensors = [tg.tensor(np.asarray(array, np.float64), requires_grad=True) for array in arrays]
    y = function(*tensors)
    (y * tg.Tensor(np.asarray(dy, np.float64))).sum().backward()
    return [tensor.grad for tensor in tensors]


def differences(function: Callable[[Array], Array], x: Array, dy: Array, step: float = 1e-5) -> Array:
    """The gradient of sum(function(x) * dy), by central differences."""
    dx = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        change = np.zeros(x.shape)
        change[i] = step
        dx[i] = ((function(x + change) - function(x - change)) * dy).sum() / (2 * step)
    return dx


def same(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Two results, or two tuples of them, agree in shape and value."""
    assert found is not None  # a forgotten return
    if isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, tolerance)
        return
    assert np.shape(found) == np.shape(expected)
    assert np.allclose(found, expected, rtol=tolerance, atol=tolerance)


from . import model_parts, small_parts  # noqa: E402, F401  (each adds its checks)
