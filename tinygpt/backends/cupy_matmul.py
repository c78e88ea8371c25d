"""Products of 16-bit matrices on a GPU, by cuBLAS itself: sums in float32, the result in 16 bits or in float32.

CuPy's `matmul` rounds each result to the factors' type and can't add to a matrix that is there. `cublasGemmEx` can do
both: the gradient of a weight comes in float32, and the shares of several blocks of rows are added up in float32, in
one pass. (CuPy's products of batches of 16-bit matrices are slow or fail: for batches see `ops/_matmul.py`.)

cuBLAS sees matrices column by column, NumPy row by row: what is y (M, N) here is its transpose there, and

    y = a b        is        y^T = b^T a^T

so b goes first, and neither is copied: a matrix whose rows lie one behind the other is its own transpose to cuBLAS, and
one whose columns do (a view `x.T`) is told to be transposed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cupy as backend
from . import recording

NO_TRANSPOSE, TRANSPOSE = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
ONE, ZERO = np.ones((), np.float32), np.zeros((), np.float32)  # cuBLAS reads them from the host


def gemm(cupy: Any, a: Any, b: Any, out: Any, add: bool) -> Any:
    """out (M, N) = a (M, K) @ b (K, N), or += with `add`. a, b: of one 16-bit type, or float32; out: of that type or
    float32, with rows whose elements are neighbours."""
    (M, K), N = a.shape, b.shape[1]
    if 0 in (M, N, K):
        if not add:
            out[...] = 0
        return out
    (b, b_op, ldb), (a, a_op, lda) = operand(cupy, b), operand(cupy, a)
    cublas, handle = library(cupy)
    cublas.gemmEx(
        handle, b_op, a_op, N, M, K, ONE.ctypes.data,
        b.data.ptr, cuda_data_type(cupy, b), ldb, a.data.ptr, cuda_data_type(cupy, a), lda,
        (ONE if add else ZERO).ctypes.data, out.data.ptr, cuda_data_type(cupy, out), leading_dimension(out),
        cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if a.itemsize == 4 and backend.uses_tf32() else cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return out


def library(cupy: Any) -> tuple[Any, int]:
    """(cuBLAS's functions, a handle): CuPy's, or those for work that becomes a CUDA graph."""
    if recording.recorder is not None:
        return recording.recorder.cublas, recording.recorder.cublas.handle
    return cupy.cuda.cublas, cupy.cuda.get_cublas_handle()


def operand(cupy: Any, x: Any) -> tuple[Any, int, int]:
    """(matrix, NO_TRANSPOSE or TRANSPOSE, leading dimension); a copy where neither is whole."""
    rows, columns = (stride // x.itemsize for stride in x.strides)
    if (columns == 1 or x.shape[1] == 1) and (rows >= x.shape[1] or x.shape[0] == 1):
        return x, NO_TRANSPOSE, leading_dimension(x)
    if (rows == 1 or x.shape[0] == 1) and (columns >= x.shape[0] or x.shape[1] == 1):
        return x, TRANSPOSE, leading_dimension(x.T)
    return cupy.ascontiguousarray(x), NO_TRANSPOSE, x.shape[1]


def leading_dimension(x: Any) -> int:
    """Elements from a row to the next; at least the row's length, since the stride of a single row may be anything."""
    return max(x.strides[0] // x.itemsize, x.shape[1])


def cuda_data_type(cupy: Any, x: Any) -> int:
    """The cudaDataType of an array's elements."""
    runtime = cupy.cuda.runtime
    return {"float16": runtime.CUDA_R_16F, "bfloat16": runtime.CUDA_R_16BF, "float32": runtime.CUDA_R_32F}[x.dtype.name]
