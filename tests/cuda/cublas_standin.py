"""`cupy.cuda.cublas` for the stand-in: cuBLAS's product of 16-bit matrices, on addresses in the computer's memory.

It sees what cuBLAS sees, addresses, types and leading dimensions, and refuses what cuBLAS refuses. The sums are in
float32, in NumPy's order.
"""

from __future__ import annotations

import ctypes
import importlib

import numpy as np

CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 68, -1
GEMM_EX = (
    "handle", "transa", "transb", "m", "n", "k", "alpha", "A", "Atype", "lda", "B", "Btype", "ldb", "beta", "C",
    "Ctype", "ldc", "computeType", "algo",
)  # fmt: skip


def gemmEx(*arguments: int) -> None:
    """`cublasGemmEx` on addresses: C (m, n) = alpha op(A) op(B) + beta C, all column by column, sums in float32."""
    given = dict(zip(GEMM_EX, arguments, strict=True))
    assert all(isinstance(value, int) for value in arguments)
    assert (given["handle"], given["computeType"]) == (1, CUBLAS_COMPUTE_32F)
    multiply(given)


def multiply(given: dict[str, int]) -> None:
    """`gemmEx`, of any handle. The sums are those of the transposed product, row by row, which is NumPy's own way."""
    assert given["algo"] == CUBLAS_GEMM_DEFAULT
    m, n, k = given["m"], given["n"], given["k"]
    alpha, beta = (float(memory_at(given[name], 0, 1)[0]) for name in ("alpha", "beta"))
    a = columns_at(given["A"], given["Atype"], given["lda"], (k, m) if given["transa"] else (m, k))
    b = columns_at(given["B"], given["Btype"], given["ldb"], (n, k) if given["transb"] else (k, n))
    c = columns_at(given["C"], given["Ctype"], given["ldc"], (m, n))
    a, b = (x.T if given[trans] else x for x, trans in ((a, "transa"), (b, "transb")))
    product = alpha * (b.T.astype(np.float32, copy=False) @ a.T.astype(np.float32, copy=False)).T
    c[...] = product.astype(c.dtype) if beta == 0 else (product + beta * c.astype(np.float32)).astype(c.dtype)


def columns_at(address: int, number: int, step: int, shape: tuple[int, int]) -> np.ndarray:
    """The matrix at an address whose columns begin `step` elements apart."""
    assert step >= max(1, shape[0]), "cuBLAS refuses such a leading dimension"
    memory = memory_at(address, number, step * (shape[1] - 1) + shape[0])
    return np.lib.stride_tricks.as_strided(memory, shape, (memory.itemsize, step * memory.itemsize))


def memory_at(address: int, number: int, size: int) -> np.ndarray:
    """`size` elements of the type with CUDA's `number`."""
    dtype = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: bfloat16()}[number]
    return np.frombuffer((ctypes.c_byte * (size * dtype.itemsize)).from_address(address), dtype)


def bfloat16() -> np.dtype:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
