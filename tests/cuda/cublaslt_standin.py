"""cuBLASLt for the stand-in: it computes what its descriptors ask for, on addresses in the computer's memory.

Written from NVIDIA's header and manual, apart from `tinygpt/backends/cupy_cublaslt.py`: the prototypes below are C's,
and ctypes refuses an argument of another type; the names of attributes stand beside the header's numbers and sizes.
Like the library, it returns CUBLAS_STATUS_INVALID_VALUE for what contradicts itself, and CUBLAS_STATUS_NOT_SUPPORTED
for an epilogue that it is told not to have. What it can't show: which algorithms a real one has, and how it rounds.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.capture import stack, written
from tests.cuda.cublas_standin import columns_at, memory_at

OK, INVALID_VALUE, INTERNAL_ERROR, NOT_SUPPORTED = 0, 7, 14, 15
INT, SIZE, POINTER = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
PROTOTYPES = {
    "cublasLtCreate": (POINTER,),
    "cublasLtMatmulDescCreate": (POINTER, INT, INT),
    "cublasLtMatmulDescSetAttribute": (POINTER, INT, POINTER, SIZE),
    "cublasLtMatmulDescDestroy": (POINTER,),
    "cublasLtMatrixLayoutCreate": (POINTER, INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (POINTER,),
    "cublasLtMatmulPreferenceCreate": (POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": (POINTER, INT, POINTER, SIZE),
    "cublasLtMatmulPreferenceDestroy": (POINTER,),
    "cublasLtMatmulAlgoGetHeuristic": (*[POINTER] * 7, INT, POINTER, POINTER),
    "cublasLtMatmul": (*[POINTER] * 14, SIZE, POINTER),
}
OF_DESCRIPTIONS = {  # number: name, dtype
    3: ("transa", np.int32), 4: ("transb", np.int32), 7: ("epilogue", np.uint32), 8: ("bias", np.uint64),
    11: ("aux", np.uint64), 12: ("aux_ld", np.int64), 26: ("bias_type", np.int32),
}  # fmt: skip
OF_PREFERENCES = {
    1: ("workspace", np.uint64), 5: ("A", np.uint32), 6: ("B", np.uint32), 7: ("C", np.uint32), 8: ("D", np.uint32),
}  # fmt: skip
EPILOGUES = {1: "", 4: "BIAS", 160: "GELU_AUX", 164: "GELU_AUX_BIAS", 192: "DGELU", 256: "BGRADA", 512: "BGRADB"}
WORKSPACE = 4096  # bytes that every algorithm here asks for


class CublasLt:
    """The library. lacks: epilogues that it has no algorithm for. wrong: whether its results are off by one."""

    def __init__(self, lacks: tuple[str, ...] = (), wrong: bool = False, fails: bool = False) -> None:
        self.lacks, self.wrong, self.fails = lacks, wrong, fails
        self.objects: dict[int, dict[str, Any]] = {}
        self.calls: list[str] = []  # of cublasLtMatmul: the epilogues
        self.errors: list[Exception] = []
        self.asked = 0  # how often for an algorithm
        self._numbers = itertools.count(1000)
        for name, types in PROTOTYPES.items():
            setattr(self, name, ctypes.CFUNCTYPE(INT, *types)(self._guarded(getattr(self, f"_{name[8:]}"))))

    def _guarded(self, method: Callable[..., int]) -> Callable[..., int]:
        """ctypes drops exceptions of a callback, so what is wrong is a status, too."""

        def call(*arguments: Any) -> int:
            try:
                return method(*arguments)
            except Exception as error:
                self.errors.append(error)
                return INTERNAL_ERROR

        return call

    # Objects ------------------------------------------------------------------------------------------

    def _new(self, place: int, **values: Any) -> int:
        number = next(self._numbers)
        self.objects[number] = values
        ctypes.c_uint64.from_address(place).value = number
        return OK

    def _delete(self, number: int) -> int:
        return OK if self.objects.pop(number, None) is not None else INVALID_VALUE

    def _set(self, table: dict[int, Any], number: int, attribute: int, address: int, size: int) -> int:
        name, dtype = table.get(attribute, ("", np.void))
        if number not in self.objects or size != np.dtype(dtype).itemsize:
            return INVALID_VALUE
        self.objects[number][name] = int(np.frombuffer(ctypes.string_at(address, size), dtype)[0])
        return OK

    def _Create(self, place: int) -> int:
        return self._new(place, kind="handle")

    def _MatmulDescCreate(self, place: int, compute: int, scale: int) -> int:
        assert (compute, scale) == (68, 0)  # CUBLAS_COMPUTE_32F, CUDA_R_32F
        return self._new(place, transa=0, transb=0, epilogue=1, bias=0, aux=0, aux_ld=0, bias_type=-1)

    def _MatrixLayoutCreate(self, place: int, kind: int, rows: int, columns: int, step: int) -> int:
        assert step >= rows
        return self._new(place, type=kind, rows=rows, columns=columns, step=step)

    def _MatmulPreferenceCreate(self, place: int) -> int:
        return self._new(place, workspace=0, A=256, B=256, C=256, D=256)

    def _MatmulDescSetAttribute(self, *arguments: int) -> int:
        return self._set(OF_DESCRIPTIONS, *arguments)

    def _MatmulPreferenceSetAttribute(self, *arguments: int) -> int:
        return self._set(OF_PREFERENCES, *arguments)

    _MatmulDescDestroy = _MatrixLayoutDestroy = _MatmulPreferenceDestroy = _delete

    # Products -----------------------------------------------------------------------------------------

    def _MatmulAlgoGetHeuristic(
        self, handle: int, description: int, A: int, B: int, C: int, D: int, preference: int, wanted: int,
        results: int, found: int,
    ) -> int:  # fmt: skip
        assert self.objects[handle]["kind"] == "handle"
        assert wanted == 1
        self.asked += 1
        operation, layouts = self.objects[description], [self.objects[x] for x in (A, B, C, D)]
        if not consistent(operation, *layouts):
            return INVALID_VALUE
        if EPILOGUES[operation["epilogue"]] in self.lacks or self.objects[preference]["workspace"] < WORKSPACE:
            return NOT_SUPPORTED
        algorithm = (ctypes.c_uint64 * 8).from_address(results)  # which product it is for, and for which alignments
        algorithm[:] = [description, A, B, D, *(self.objects[preference][x] for x in "ABD"), operation["bias"] & 15]
        ctypes.c_size_t.from_address(results + 64).value = WORKSPACE
        INT.from_address(results + 72).value = OK
        ctypes.c_float.from_address(results + 76).value = 1.0
        (INT * 4).from_address(results + 80)[:] = [0] * 4
        INT.from_address(found).value = 1
        return OK

    def _Matmul(
        self, handle: int, description: int, alpha: int, A: int, of_A: int, B: int, of_B: int, beta: int, C: int,
        of_C: int, D: int, of_D: int, algorithm: int, workspace: int | None, size: int, stream: int | None,
    ) -> int:  # fmt: skip
        if self.fails:
            return 13  # CUBLAS_STATUS_EXECUTION_FAILED
        operation, layouts = dict(self.objects[description]), [dict(self.objects[x]) for x in (of_A, of_B, of_D)]
        made_for = list((ctypes.c_uint64 * 8).from_address(algorithm))
        assert made_for[:4] == [description, of_A, of_B, of_D]
        assert all(address % step == 0 for address, step in zip((A, B, D), made_for[4:7], strict=True))
        assert workspace
        assert size >= WORKSPACE
        assert stream == stack[-1].ptr
        assert memory_at(alpha, 0, 1)[0] == 1
        assert memory_at(beta, 0, 1)[0] == 0
        assert (C, of_C) == (D, of_D)
        self.calls.append(EPILOGUES[operation["epilogue"]])
        written(lambda: compute(operation, (A, B, D), layouts, self.wrong))
        return OK


def consistent(operation: dict[str, int], A: Any, B: Any, C: Any, D: Any) -> bool:
    """Whether the layouts fit together, and the epilogue has what it needs."""
    (m, k), (k_of_B, n) = shape_of(A, operation["transa"]), shape_of(B, operation["transb"])
    sizes = (m, n, k) == (D["rows"], D["columns"], k_of_B)
    needs_bias, needs_aux = operation["epilogue"] & (4 | 16 | 256 | 512), operation["epilogue"] & 128
    bias = not needs_bias or (operation["bias"] != 0 and operation["bias_type"] in (-1, D["type"]))
    aux = not needs_aux or (operation["aux"] != 0 and operation["aux_ld"] >= m and operation["aux_ld"] % 8 == 0)
    return sizes and bias and aux and C == D and A["type"] == B["type"]


def shape_of(layout: dict[str, int], transposed: int) -> tuple[int, int]:
    shape = layout["rows"], layout["columns"]
    return (shape[1], shape[0]) if transposed else shape


def compute(operation: dict[str, int], addresses: tuple[int, ...], layouts: list[Any], wrong: bool) -> None:
    """D = epilogue(op(A) op(B)), in float32."""
    a, b, d = (
        columns_at(address, x["type"], x["step"], (x["rows"], x["columns"]))
        for address, x in zip(addresses, layouts, strict=True)
    )
    a = (a.T if operation["transa"] else a).astype(np.float32)
    b = (b.T if operation["transb"] else b).astype(np.float32)
    (m, n), epilogue, of_D = d.shape, EPILOGUES[operation["epilogue"]], layouts[2]["type"]
    product = np.einsum("mk,kn->mn", a, b) + np.float32(wrong)  # without BLAS and its threads: see `test_epilogues.py`
    bias = memory_at(operation["bias"], of_D, n if epilogue == "BGRADB" else m) if operation["bias"] else None
    aux = columns_at(operation["aux"], of_D, operation["aux_ld"], (m, n)) if operation["aux"] else None
    if epilogue == "BIAS":
        assert bias is not None
        product += bias.astype(np.float32)[:, None]
    elif epilogue.startswith("GELU_AUX"):
        assert aux is not None
        if epilogue == "GELU_AUX_BIAS":
            assert bias is not None
            product += bias.astype(np.float32)[:, None]
        aux[...] = product.astype(aux.dtype)
        product = product / 2 * (1 + np.tanh(U * (product + 0.044715 * product**3)))
    elif epilogue == "DGELU":
        assert aux is not None
        z = aux.astype(np.float32)
        t = np.tanh(U * (z + 0.044715 * z**3))
        product *= (1 + t) / 2 + z / 2 * (1 - t * t) * U * (1 + 3 * 0.044715 * z * z)
    elif epilogue:  # sums over k
        assert bias is not None
        bias[...] = (a.sum(axis=1) if epilogue == "BGRADA" else b.sum(axis=0)).astype(bias.dtype)
    d[...] = product.astype(d.dtype)


U = np.float32(np.sqrt(2 / np.pi))
