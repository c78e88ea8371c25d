"""What the tests of packed matrices and of the decoder's kernels share: matrices in every format, and the error rule.

Packed matrices are not of one floating type, so these kernels have no rows in `__init__.py`. The rule is the same as
there (`tests/ops/kernel_rule.py`): the reference in float64 on the unpacked weights is the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.ops.drawing import lay_out
from tests.ops.kernel_rule import EPS32, doubled, largest
from tests.ops.rounding import Rounding
from tinygpt.backends import get
from tinygpt.kernel import use_kernels
from tinygpt.ops.packed import Matrix, pack, unpack, unpack_into

needs_extension = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")


def compiled(test: Any) -> Any:
    """A test of the compiled bodies: they run in it whatever TINYGPT_KERNELS says."""
    return needs_extension(use_kernels("cython")(test))


# (format, group); a group of 24 is no multiple of the vectors' widths, 1000 is longer than most sums.
FORMATS = [
    ("float32", None), ("bfloat16", None), ("int8", None), ("int8", 8), ("int8", 16), ("int8", 24), ("int8", 1000),
]  # fmt: skip
ALL_FORMATS = [*FORMATS, ("int4", None)]


def terms(count: int, form: tuple[str, int | None]) -> int:
    """At least so many terms, and as many as a sum of this format can have."""
    return -(-count // 32) * 32 if form[0] == "int4" else count


def normal(rng: np.random.Generator, *shape: int, std: float = 1.0) -> np.ndarray:
    return (std * rng.standard_normal(shape)).astype(np.float32)


def drawn_matrix(rng: np.random.Generator, shape: tuple[int, int], form: tuple[str, int | None], axis: int) -> Matrix:
    """Weights whose products with numbers around 1 are numbers around 1. `axis`: the one that is summed over."""
    return pack(normal(rng, *shape, std=shape[axis] ** -0.5), form[0], axis, form[1])


def budget(function: Callable[..., list[Any]], arrays: list[Any]) -> tuple[list[np.ndarray], list[float]]:
    """The truth for each result of `function(*arrays)`, and how far from it a float32 body may be."""
    with use_kernels("reference"), np.errstate(all="ignore"):
        truth = [np.asarray(value) for value in function(*doubled(arrays))]
        reference = function(*[a.copy() if isinstance(a, np.ndarray) else a for a in arrays])
        choices = [
            function(*doubled(arrays, Rounding(EPS32, seed, in_sums=False, in_products=True))) for seed in range(4)
        ]
    allowed = []
    for i, true in enumerate(truth):
        tiny = max(largest(np.asarray(choice[i]) - true) for choice in choices) + EPS32 * largest(true)
        allowed.append(2 * largest(reference[i] - true) + tiny)
    return truth, allowed


def check_unpacking(shape: tuple[int, int], form: tuple[str, int | None], axis: int, threads: Any) -> Matrix:
    """The compiled body unpacks a drawn matrix, which is returned, to the numbers of the reference on any number of
    threads, and leaves other memory layouts to it."""
    matrix = drawn_matrix(np.random.default_rng(0), shape, form, axis)
    expected = unpack_into.reference(np.empty(shape, np.float32), matrix, axis)
    for count in (1, 2, 3, 8):
        threads(count)
        with use_kernels("cython"):
            assert np.array_equal(unpack_into(np.full(shape, np.nan, np.float32), matrix, axis), expected)
    with use_kernels("cython"):  # what the compiled body doesn't take
        strided = lay_out(np.zeros(shape, np.float32), "strided")
        assert np.array_equal(unpack_into(strided, matrix, axis), expected)
        data = np.asfortranarray(matrix.data)
        assert np.array_equal(unpack(matrix._replace(data=data), axis), expected)
    return matrix


def check_threads(threads: Any, compute: Callable[[], np.ndarray]) -> None:
    """Any number of threads gives the same bits."""
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(compute())
    assert all(np.array_equal(result, results[0]) for result in results)
