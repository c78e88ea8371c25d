"""The product of two matrices, in float32 in the same bits on any number of threads.

The product is the BLAS library's. OpenBLAS cuts a long sum over k into pieces. A piece that is longer than one of its
units (multiples of 32) and shorter than two, it halves, and one thread rounds the half to another multiple than
several threads do: the sum is then added up in another order. With K a multiple of 32 the halves are equal, so a K that
is none is cut here: its last few terms become a product of their own. Sums of at most 256 terms are never cut. A single
row goes through as two equal ones, because a product with a vector has an order for each number of threads.

Not promised: float64, where OpenBLAS divides work in more ways, and a right operand of one column. Another BLAS may
have other habits; `tests/test_threads.py` looks at the one in use.
"""

from __future__ import annotations

from typing import Any

from . import array_module

UNIT, NEVER_CUT = 32, 256


def matrix_product(a: Any, b: Any, out: Any = None) -> Any:
    """a (..., M, K) @ b (..., K, N) -> (..., M, N), written into `out` if there is one."""
    xp = array_module(a)
    K = a.shape[-1]
    rest = K % UNIT
    if K <= NEVER_CUT or a.ndim < 2 or b.ndim < 2:
        return xp.matmul(a, b, out=out)
    if a.shape[-2] == 1 and out is None:
        return matrix_product(xp.repeat(a, 2, axis=-2), b)[..., :1, :]
    if rest == 0:
        return xp.matmul(a, b, out=out)
    result = xp.matmul(a[..., :-rest], b[..., :-rest, :], out=out)
    result += xp.matmul(a[..., -rest:], b[..., -rest:, :])
    return result
