"""Matrix products. In float32 they give the same bits on any number of threads.

On processors with AVX2 or AVX-512, our compiled kernel multiplies NumPy's float32 matrices (`_ext/cpu/matmul`). For few
rows or columns, for batches, and on all other processors, we call OpenBLAS, which comes with NumPy. But OpenBLAS splits
a product by the number of threads, and how it is split changes the rounding. So we split the product ourselves, by its
size alone, and let OpenBLAS compute each block on a single thread (`product_blas.h` there).

Products of 16-bit matrices are summed in float32 and rounded once, or left in float32 (`float32_result`). On a GPU
cuBLAS does this (`backends/cupy_matmul.py`), on a CPU our kernel, for bfloat16; batches of 16-bit products, which no
fast path needs, are upcast first.

The same bits are not guaranteed in float64, if NumPy's BLAS does not run on our threads (`python -m tinygpt.kernel`
shows whether it does), or without the compiled extension. Then `numpy.matmul` computes the product.
"""

from __future__ import annotations

import numpy as np

from ..backends import array_module, name_of, recording
from ..backends.precision import is_16_bit, statistics_dtype, upcast
from ..kernel import kernel
from ..typing import Array

SLICE_BYTES = 8 * 2**20  # how much of a product to compute at a time before adding it to an array


def matmul_arrays(a: Array, b: Array, out: Array | None = None, float32_result: bool = False) -> Array:
    """a (..., M, K) @ b (..., K, N) -> (..., M, N), written into `out` if it is given.

    float32_result: do not round the product of 16-bit matrices to 16 bits; `out` may then be float32.
    """
    xp = array_module(a)
    if is_16_bit(a.dtype) or _inside_graph_capture(a, b):
        return _matmul_in_16_bits(a, b, out, float32_result)
    if xp is np and a.dtype == b.dtype == np.float32:
        if a.ndim == b.ndim == 2:
            return matmul_into(a, b, np.empty((a.shape[0], b.shape[1]), np.float32) if out is None else out, False)
        if matmul_into.compiled:
            return _batched_matmul(a, b, out)
    return xp.matmul(a, b, out=out)


@kernel(strided=True, in_place=True)
def matmul_into(a: Array, b: Array, out: Array, add: bool) -> Array:
    """out (M, N) = a (M, K) @ b (K, N), or out += a @ b if `add`. `out` must not overlap a or b. Returns out.

    If a and b are 16-bit, `out` may be float32. Without `add` it also takes a batch of products: a (S, M, K),
    b (S, K, N), out (S, M, N).
    """
    xp = array_module(a)
    if not add:
        return xp.matmul(a, b, out=out)
    step = max(1, SLICE_BYTES // max(1, out.shape[1] * out.itemsize))
    for start in range(0, len(out), step):  # a slice at a time, so that it is added while it is still in the cache
        out[start : start + step] += xp.matmul(a[start : start + step], b)
    return out


def _batched_matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """`matmul_arrays` for any number of axes. `matmul_into` does the last batch axis; a loop does the others."""
    rows = a if a.ndim > 1 else a[None, :]  # (..., M, K)
    columns = b if b.ndim > 1 else b[:, None]  # (..., K, N)
    batch = np.broadcast_shapes((1,), rows.shape[:-2], columns.shape[:-2])
    made = np.empty((*batch, rows.shape[-2], columns.shape[-1]), np.float32)
    rows = np.broadcast_to(rows, (*batch, *rows.shape[-2:]))
    columns = np.broadcast_to(columns, (*batch, *columns.shape[-2:]))
    for index in np.ndindex(batch[:-1]):
        matmul_into(rows[index], columns[index], made[index], False)
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + a.shape[-2:-1] + (b.shape[-1:] if b.ndim > 1 else ())
    if out is None:
        return made.reshape(shape)
    out[...] = made.reshape(shape)
    return out


def add_matmul(a: Array, b: Array, out: Array) -> None:
    """out (M, N) += a (M, K) @ b (K, N). If a and b are 16-bit, `out` may be float32."""
    if is_16_bit(a.dtype) or _inside_graph_capture(a, b):
        _matmul_in_16_bits(a, b, out, add=True)
    elif a.dtype == b.dtype == out.dtype:
        matmul_into(a, b, out, True)
    else:
        out += matmul_arrays(a, b, float32_result=True)


def _inside_graph_capture(a: Array, b: Array) -> bool:
    """Whether CuPy would refuse this product: float32 matrices while a CUDA graph is captured (see cupy_graph.py)."""
    return recording.recorder is not None and name_of(a) == "cupy" and a.ndim == b.ndim == 2 and a.dtype == "float32"


def _matmul_in_16_bits(a: Array, b: Array, out: Array | None, float32_result: bool = False, add: bool = False) -> Array:
    """Like `matmul_arrays`, and for float32 matrices while a CUDA graph is captured. add: add the product to `out`."""
    xp = array_module(a)
    if a.ndim == b.ndim == 2:
        if out is None:
            out = xp.empty((a.shape[0], b.shape[1]), dtype=statistics_dtype(a.dtype) if float32_result else a.dtype)
        if name_of(a) != "cupy":
            return matmul_into(a, b, out, add)
        from ..backends.cupy_matmul import gemm

        return gemm(xp, a, b, out, add)
    result = xp.matmul(upcast(a), upcast(b))
    if out is None:
        return result if float32_result else result.astype(a.dtype)
    out[...] = result.astype(out.dtype)
    return out
