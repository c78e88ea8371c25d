"""cuBLASLt, by calling it directly: matrix products that also do something with each number of the result.

    library = Library(cupy, load(cupy))
    plan = library.plan(product, bias, aux)            # None: it has no algorithm for this product
    library.launch(plan, A, B, D, bias, aux)

`cupy_epilogues.py` says what for. The numbers below are those of NVIDIA's header cublasLt.h, the same in CUDA 11.8, 12
and 13. All descriptors are made by its functions, so the only structure whose layout appears here is
cublasLtMatmulHeuristicResult_t.

A description, with the algorithm found for it, is kept for each kind of product; what changes from call to call are
addresses. A launch reads it at once, so a CUDA graph does not depend on it. Its workspace is an array like any other,
freed after the launch: whatever gets that memory next uses it later on the same CUDA stream, or in the same graph.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .cupy_matmul import ONE, ZERO, loaded_library

BIAS, GELU_AUX, GELU_AUX_BIAS, DGELU, BGRADA = 4, 32 | 128, 32 | 128 | 4, 64 | 128, 256  # cublasLtEpilogue_t
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
AUX_POINTER, AUX_LD, BIAS_DATA_TYPE = 11, 12, 26
MAX_WORKSPACE_BYTES, MIN_ALIGNMENTS = 1, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t: of A, B, C and D
COMPUTE_32F, R_32F = 68, 0  # cublasComputeType_t, cudaDataType_t

WORKSPACE = 32 << 20  # bytes, as cuBLAS's manual advises for the newest GPUs
MAX_PLANS = 256  # a training step has some ten products
OLDEST = 80  # compute capability, times ten


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8), ("workspace_size", ctypes.c_size_t), ("state", ctypes.c_int),
        ("waves_count", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    )  # fmt: skip


_int, _size, _address = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_address,),
    "cublasLtMatmulDescCreate": (_address, _int, _int),
    "cublasLtMatmulDescSetAttribute": (_address, _int, _address, _size),
    "cublasLtMatmulDescDestroy": (_address,),
    "cublasLtMatrixLayoutCreate": (_address, _int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_address,),
    "cublasLtMatmulPreferenceCreate": (_address,),
    "cublasLtMatmulPreferenceSetAttribute": (_address, _int, _address, _size),
    "cublasLtMatmulPreferenceDestroy": (_address,),
    # handle, description, layouts of A, B, C, D, preference, number wanted, results, number found
    "cublasLtMatmulAlgoGetHeuristic": (*[_address] * 7, _int, _address, _address),
    # handle, description, alpha, A, its layout, B, its layout, beta, C, its layout, D, its layout, algorithm,
    # workspace, its size, stream
    "cublasLtMatmul": (*[_address] * 14, _size, _address),
}


class LtError(Exception):
    """A function of cuBLASLt that failed. The message is a clause that ends another message."""


class Product(NamedTuple):
    """What a plan depends on: D (m, n) = epilogue(op(A) op(B)), stored column by column."""

    epilogue: int
    types: tuple[int, int, int]  # cudaDataType_t: of A and B, of D and the auxiliary matrix, of the bias
    sizes: tuple[int, int, int]  # m, n, k
    ops: tuple[int, int]  # CUBLAS_OP_N or CUBLAS_OP_T: of A, B
    steps: tuple[int, int, int, int]  # leading dimensions: of A, B, D, the auxiliary matrix
    alignments: tuple[int, int, int, int, int]  # bytes: of A, B, D, bias, auxiliary matrix


class Plan(NamedTuple):
    """A product that cuBLASLt has an algorithm for: its description, the layouts of A, B and D, what it needs."""

    description: int
    layouts: tuple[int, int, int]
    algorithm: Any
    workspace: int  # bytes


def load(cupy: Any) -> Any:
    """The library, which was loaded with cuBLAS by CuPy. Raises LtError."""
    if sys.platform != "linux":
        raise LtError("it is supported only on Linux")
    if int(cupy.cuda.Device().compute_capability) < OLDEST:
        raise LtError("it is for GPUs of compute capability 8.0 and newer")
    try:
        return loaded_library(cupy, "cublasLt")
    except OSError as error:
        raise LtError(f"it can't be found ({error})") from error


class Library:
    """cuBLASLt with its own handle, for the current GPU."""

    def __init__(self, cupy: Any, functions: Any) -> None:
        self.cupy, self.functions = cupy, functions
        self.handle = self.made("cublasLtCreate")
        self.plans: dict[Product, Plan | None] = {}
        self.lock = threading.RLock()  # a description is changed at each launch

    def launch(self, plan: Plan, A: Any, B: Any, D: Any, bias: Any, aux: Any) -> None:
        """Compute a product. bias, aux: None if the epilogue has none. Raises LtError."""
        workspace = self.cupy.empty(plan.workspace, np.uint8) if plan.workspace else None
        of_A, of_B, of_D = plan.layouts
        with self.lock:
            self.point(plan.description, bias, aux)
            self.call(
                "cublasLtMatmul", self.handle, plan.description, ONE.ctypes.data, A.data.ptr, of_A, B.data.ptr, of_B,
                ZERO.ctypes.data, D.data.ptr, of_D, D.data.ptr, of_D, ctypes.addressof(plan.algorithm),
                None if workspace is None else workspace.data.ptr, plan.workspace,
                self.cupy.cuda.get_current_stream().ptr,
            )  # fmt: skip

    def plan(self, product: Product, bias: Any, aux: Any) -> Plan | None:
        """How to compute a product; None if cuBLASLt has no algorithm for it. It is asked once for each."""
        with self.lock:
            if product not in self.plans:
                while len(self.plans) >= MAX_PLANS:
                    self.destroy(self.plans.pop(next(iter(self.plans))))
                self.plans[product] = self.planned(product, bias, aux)
            return self.plans[product]

    def planned(self, product: Product, bias: Any, aux: Any) -> Plan | None:
        (m, n, k), (of_factors, of_result, of_bias) = product.sizes, product.types
        shapes = (((k, m) if product.ops[0] else (m, k)), ((n, k) if product.ops[1] else (k, n)), (m, n))
        A, B, D = (
            self.made("cublasLtMatrixLayoutCreate", kind, *shape, step)
            for kind, shape, step in zip((of_factors, of_factors, of_result), shapes, product.steps[:3], strict=True)
        )
        description = self.made("cublasLtMatmulDescCreate", COMPUTE_32F, R_32F)
        for attribute, number in ((TRANSA, product.ops[0]), (TRANSB, product.ops[1]), (EPILOGUE, product.epilogue)):
            self.set("MatmulDesc", description, attribute, ctypes.c_int32(number))
        if bias is not None:
            self.set("MatmulDesc", description, BIAS_DATA_TYPE, ctypes.c_int32(of_bias))
        if aux is not None:
            self.set("MatmulDesc", description, AUX_LD, ctypes.c_int64(product.steps[3]))
        self.point(description, bias, aux)  # whose alignment the heuristic looks at
        result = self.heuristic(description, (A, B, D), product.alignments)
        plan = Plan(description, (A, B, D), result and result.algo, result.workspace_size if result else 0)
        if result is None:
            self.destroy(plan)
            return None
        return plan

    def heuristic(self, description: int, layouts: Sequence[int], alignments: Sequence[int]) -> HeuristicResult | None:
        """The algorithm that cuBLASLt recommends for a product; None if it has none."""
        preference = self.made("cublasLtMatmulPreferenceCreate")
        self.set("MatmulPreference", preference, MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE))
        A, B, D = alignments[:3]
        for attribute, value in zip(MIN_ALIGNMENTS, (A, B, D, D), strict=True):
            self.set("MatmulPreference", preference, attribute, ctypes.c_uint32(value))
        result, count = HeuristicResult(), ctypes.c_int(0)
        of_A, of_B, of_D = layouts
        status = self.status(
            "cublasLtMatmulAlgoGetHeuristic", self.handle, description, of_A, of_B, of_D, of_D, preference, 1,
            ctypes.addressof(result), ctypes.addressof(count),
        )  # fmt: skip
        self.call("cublasLtMatmulPreferenceDestroy", preference)
        return result if status == 0 and count.value == 1 and result.state == 0 else None

    def point(self, description: int, bias: Any, aux: Any) -> None:
        """Write the addresses of bias and auxiliary matrix into a description."""
        for attribute, array in ((BIAS_POINTER, bias), (AUX_POINTER, aux)):
            if array is not None:
                self.set("MatmulDesc", description, attribute, ctypes.c_uint64(array.data.ptr))

    def destroy(self, plan: Plan | None) -> None:
        if plan is not None:
            for layout in plan.layouts:
                self.call("cublasLtMatrixLayoutDestroy", layout)
            self.call("cublasLtMatmulDescDestroy", plan.description)

    # Calls ------------------------------------------------------------------------------------------

    def set(self, kind: str, target: int, attribute: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        self.call(f"cublasLt{kind}SetAttribute", target, attribute, ctypes.addressof(value), size)

    def made(self, name: str, *arguments: Any) -> int:
        """The address of what a function creates."""
        place = ctypes.c_uint64(0)
        self.call(name, ctypes.addressof(place), *arguments)
        return place.value

    def call(self, name: str, *arguments: Any) -> None:
        status = self.status(name, *arguments)
        if status != 0:
            raise LtError(f"{name} returned status {status}")

    def status(self, name: str, *arguments: Any) -> int:
        typed = [kind(value) for kind, value in zip(SIGNATURES[name], arguments, strict=True)]
        return int(getattr(self.functions, name)(*typed))
