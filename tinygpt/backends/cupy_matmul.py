"""16-bit matrix products on a GPU, by calling cuBLAS directly: sums in float32, the result in 16 bits or float32.

CuPy's `matmul` rounds the result to the factors' type and can't add to an existing matrix. `cublasGemmEx` can return
float32, as we want for the gradient of a weight, and can add: the contributions of several blocks of rows are summed in
float32 without another pass. (CuPy's batched 16-bit products are slow or fail: for batches see `ops/_matmul.py`.)

cuBLAS stores matrices column by column, NumPy row by row, so our y (M, N) is cuBLAS's y^T (N, M). Since

    y = a b        is        y^T = b^T a^T

b goes first, and nothing is copied. To cuBLAS, a matrix stored row by row already is its transpose, and one stored
column by column (such as a view `x.T`) is passed with the flag TRANSPOSE.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np

from . import cupy_tf32, recording

NO_TRANSPOSE, TRANSPOSE = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
ONE, ZERO = np.ones((), np.float32), np.zeros((), np.float32)  # cuBLAS reads them from the host


def loaded_library(cupy: Any, name: str) -> Any:
    """The library "cublas" or "cublasLt" that CuPy has loaded, on Linux. Raises OSError."""
    cupy.cuda.get_cublas_handle()  # makes CuPy find and load both
    file = f"lib{name}.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}"
    return ctypes.CDLL(file, mode=os.RTLD_NOW | os.RTLD_NOLOAD)


def gemm(cupy: Any, a: Any, b: Any, out: Any, add: bool) -> Any:
    """out (M, N) = a (M, K) @ b (K, N), or += with `add`. a, b: both of one 16-bit type, or float32. out: of that type
    or float32; the elements of each row must be contiguous."""
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
        cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if a.itemsize == 4 and cupy_tf32.in_use() else cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return out


def library(cupy: Any) -> tuple[Any, int]:
    """(cuBLAS's functions, a handle): CuPy's, or the recorder's while a CUDA graph is being made."""
    if recording.recorder is not None:
        return recording.recorder.cublas, recording.recorder.cublas.handle
    return cupy.cuda.cublas, cupy.cuda.get_cublas_handle()


def operand(cupy: Any, x: Any) -> tuple[Any, int, int]:
    """(matrix, NO_TRANSPOSE or TRANSPOSE, leading dimension). Copies x unless its rows or columns are contiguous."""
    rows, columns = (stride // x.itemsize for stride in x.strides)
    if (columns == 1 or x.shape[1] == 1) and (rows >= x.shape[1] or x.shape[0] == 1):
        return x, NO_TRANSPOSE, leading_dimension(x)
    if (rows == 1 or x.shape[0] == 1) and (columns >= x.shape[0] or x.shape[1] == 1):
        return x, TRANSPOSE, leading_dimension(x.T)
    return cupy.ascontiguousarray(x), NO_TRANSPOSE, x.shape[1]


def leading_dimension(x: Any) -> int:
    """Elements from one row to the next; at least the row's length, as the stride of a single row may be anything."""
    return max(x.strides[0] // x.itemsize, x.shape[1])


def cuda_data_type(cupy: Any, x: Any) -> int:
    """The cudaDataType of an array's elements."""
    runtime = cupy.cuda.runtime
    return {"float16": runtime.CUDA_R_16F, "bfloat16": runtime.CUDA_R_16BF, "float32": runtime.CUDA_R_32F}[x.dtype.name]
