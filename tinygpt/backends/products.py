"""The product of two matrices, in float32 in the same bits on any number of threads.

On processors with AVX-512 a compiled body multiplies float32 matrices of NumPy's (`_ext/product.h`): there it is faster
than NumPy's own library. Everywhere else, and for few rows or columns, the product is the BLAS library's. OpenBLAS cuts
a long sum over k into pieces. A piece that is longer than one of its units (multiples of 32) and shorter than two, it
halves, and one thread rounds the half to another multiple than several threads do: the sum is then added up in another
order. With K a multiple of 32 the halves are equal, so a K that is none is cut here: its last few terms become a
product of their own. Sums of at most 256 terms are never cut. A single row goes through as two equal ones, because a
product with a vector has an order for each number of threads.

Products of 16-bit matrices are summed in float32 and rounded once, or kept in float32 (`wide`). On a GPU cuBLAS does
that (`cupy_products.py`); batches of them, which the fast bodies never ask for, are widened first.

Not promised: float64, where OpenBLAS divides work in more ways, and a right operand of one column. Another BLAS may
have other habits; `tests/test_threads.py` looks at the one in use.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernel import kernel
from . import array_module, name_of
from . import cupy as gpu
from .precision import is_16_bit, statistics_dtype, widened

UNIT, NEVER_CUT = 32, 256
SLICE_BYTES = 8 * 2**20  # how much of a product is made at a time to be added to an array


def matrix_product(a: Any, b: Any, out: Any = None, wide: bool = False) -> Any:
    """a (..., M, K) @ b (..., K, N) -> (..., M, N), written into `out` if there is one.

    wide: of 16-bit matrices, in float32; so may `out` be.
    """
    xp = array_module(a)
    if is_16_bit(a.dtype) or _for_a_graph(a, b):
        return _product_by_cublas(a, b, out, wide)
    if xp is np and a.ndim == b.ndim == 2 and a.dtype == b.dtype == np.float32:
        return product_into(a, b, np.empty((a.shape[0], b.shape[1]), np.float32) if out is None else out, False)
    return product_by_blas(a, b, out)


@kernel(strided=True, in_place=True)
def product_into(a: Any, b: Any, out: Any, add: bool) -> Any:
    """out (M, N) = a (M, K) @ b (K, N), or with `add` out += a @ b. `out` must not overlap a or b. Returns out."""
    if not add:
        return product_by_blas(a, b, out)
    step = max(1, SLICE_BYTES // max(1, out.shape[1] * out.itemsize))
    for start in range(0, len(out), step):  # a piece of the product at a time, which is added while it is in the cache
        out[start : start + step] += product_by_blas(a[start : start + step], b)
    return out


def product_by_blas(a: Any, b: Any, out: Any = None) -> Any:
    """a (..., M, K) @ b (..., K, N), as the library of the arrays does it, with the order of sums fixed as above."""
    xp = array_module(a)
    K = a.shape[-1]
    rest = K % UNIT
    if K <= NEVER_CUT or a.ndim < 2 or b.ndim < 2:
        return xp.matmul(a, b, out=out)
    if a.shape[-2] == 1:
        row = product_by_blas(xp.repeat(a, 2, axis=-2), b)[..., :1, :]
        if out is None:
            return row
        out[...] = row
        return out
    if rest == 0:
        return xp.matmul(a, b, out=out)
    result = xp.matmul(a[..., :-rest], b[..., :-rest, :], out=out)
    result += xp.matmul(a[..., -rest:], b[..., -rest:, :])
    return result


def add_matrix_product(a: Any, b: Any, out: Any) -> None:
    """out (M, N) += a (M, K) @ b (K, N); where a and b have 16 bits, `out` may be in float32."""
    if name_of(a) == "cupy" and (is_16_bit(a.dtype) or _for_a_graph(a, b)):
        _product_by_cublas(a, b, out, add=True)
    elif a.dtype == b.dtype == out.dtype and not is_16_bit(a.dtype):
        product_into(a, b, out, True)
    else:
        out += matrix_product(a, b, wide=True)


def _for_a_graph(a: Any, b: Any) -> bool:
    """Whether this is a product that CuPy would not do: of float32 matrices, in a CUDA graph (see cupy_graph.py)."""
    return gpu.recorder is not None and name_of(a) == "cupy" and a.ndim == b.ndim == 2 and a.dtype == "float32"


def _product_by_cublas(a: Any, b: Any, out: Any, wide: bool = False, add: bool = False) -> Any:
    """As `matrix_product`; add: to what `out` holds."""
    xp = array_module(a)
    if name_of(a) == "cupy" and a.ndim == b.ndim == 2:
        from .cupy_products import product

        if out is None:
            out = xp.empty((a.shape[0], b.shape[1]), dtype=statistics_dtype(a.dtype) if wide else a.dtype)
        return product(xp, a, b, out, add)
    result = xp.matmul(widened(a), widened(b))
    if out is None:
        return result if wide else result.astype(a.dtype)
    out[...] = result.astype(out.dtype)
    return out
