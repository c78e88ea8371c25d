"""CuPy on paper: arrays with a shape, a dtype, strides and an address, but no values. Each launch is recorded.

    with on_paper() as record:
        model = tg.GPT(config).to("cupy")
        model.loss(idx, targets).backward()
    record.launches                           # every kernel, product and copy, in order, with what it was given

The code that runs is tinygpt's own, model, operations, engine and launchers; the arrays' memory is never touched, so a
step of GPT-2 takes a second and no memory. For `gpu_model.py`, which estimates what each launch should cost. A function
of CuPy's that is missing here is an AttributeError: add it. `tests/cuda/test_launches.py` compares the record with the
launches of the same step on the stand-in that computes.
"""

from __future__ import annotations

import contextlib
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from tinygpt._ext import cuda
from tinygpt.backends import cupy_kernels
from tinygpt.backends.cupy_epilogues import setting


class Launch(NamedTuple):
    """One launch: the kernel's instance, or what CuPy or cuBLAS does; what it reads and writes; its operations."""

    name: str
    arrays: tuple[Any, ...]  # NumPy arrays, as views of memory that nobody touches
    operations: float = 0.0
    kind: str = "kernel"  # or "product", "cupy", "upload"


class Record:
    """The launches so far, and how often the host waited for a result."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.waits = 0

    def add(self, name: str, *arrays: Any, operations: float = 0.0, kind: str = "cupy") -> None:
        self.launches.append(Launch(name, tuple(held(a) for a in arrays if hasattr(a, "dtype")), operations, kind))


record = Record()


def held(array: Any) -> Any:
    return array.held if isinstance(array, ndarray) else array


# Arrays -------------------------------------------------------------------------------------------


class ndarray:
    """An array of CuPy's. `held` is a NumPy array that is never read."""

    __slots__ = ("__weakref__", "base", "held")
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, held: Any, base: Any = None) -> None:
        self.held, self.base = held, base

    shape = property(lambda self: self.held.shape)
    dtype = property(lambda self: self.held.dtype)
    ndim = property(lambda self: self.held.ndim)
    size = property(lambda self: self.held.size)
    itemsize = property(lambda self: self.held.itemsize)
    nbytes = property(lambda self: self.held.nbytes)
    strides = property(lambda self: self.held.strides)
    data = property(lambda self: types.SimpleNamespace(ptr=self.held.ctypes.data))
    T = property(lambda self: self._view(self.held.T))

    @property
    def flags(self) -> Any:
        flags = self.held.flags
        return types.SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    def _view(self, view: Any) -> ndarray:
        return ndarray(view, self if self.base is None else self.base)

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator[ndarray]:
        return (self._view(part) for part in self.held)

    def reshape(self, *shape: Any) -> ndarray:
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        try:
            return self._view(np.reshape(self.held, wanted, copy=False))
        except ValueError:
            copy = self.copy()
            return copy._view(copy.held.reshape(wanted))

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self.held.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> ndarray:
        return self._view(self.held.swapaxes(a, b))

    def __getitem__(self, key: Any) -> ndarray:
        if isinstance(key, ndarray):
            return made("take", key.shape + self.shape[1:], self.dtype, key)
        return self._view(self.held[key if isinstance(key, tuple) else (key, ...)])

    def __setitem__(self, key: Any, value: Any) -> None:
        target = self.held[key if isinstance(key, tuple) else (key, ...)]
        record.add("copy" if isinstance(value, ndarray) else "fill", target, value)

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        return made(f"copy {self.dtype} to {np.dtype(dtype)}", self.shape, dtype, self)

    def copy(self) -> ndarray:
        return made("copy", self.shape, self.dtype, self)

    def fill(self, value: Any) -> None:
        record.add("fill", self)

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return made("sum", _reduced(self.shape, axis, keepdims), dtype or self.dtype, self)

    def item(self) -> float:
        record.waits += 1
        return 1.0

    def tolist(self) -> Any:
        record.waits += 1
        return np.ones(self.shape).tolist()

    def get(self, **_: Any) -> np.ndarray:
        record.waits += 1
        return np.ones(self.shape, self.dtype)

    def set(self, array: np.ndarray, stream: Any = None) -> None:
        record.add("from the host", array, kind="upload")

    __float__ = item


ndarray.__module__ = "cupy"


def _reduced(shape: tuple[int, ...], axis: Any, keepdims: bool) -> tuple[int, ...]:
    axes = range(len(shape)) if axis is None else {a % len(shape) for a in np.atleast_1d(axis)}
    return tuple([1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes])


def empty(shape: Any, dtype: Any = np.float64) -> ndarray:
    return ndarray(np.empty(shape, dtype))


def made(name: str, shape: Any, dtype: Any, *read: Any) -> ndarray:
    """The result of a launch of CuPy's own."""
    result = empty(shape, dtype)
    record.add(name, result, *read)
    return result


def _elementwise(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, out: Any = None, dtype: Any = None) -> ndarray:
        small = [np.empty((0,) * a.ndim, a.dtype) if isinstance(a, ndarray) else a for a in arguments]
        shape = np.broadcast_shapes(*[a.shape for a in arguments if isinstance(a, ndarray)])
        if out is not None:
            record.add(name, out, *arguments)
            return out
        return made(name, shape, dtype or function(*small).dtype, *arguments)

    return call


def _in_place(name: str) -> Callable[..., Any]:
    def operate(self: ndarray, other: Any) -> ndarray:
        record.add(name, self, self, other)  # read and written
        return self

    return operate


for _name in ("add", "sub", "mul", "truediv"):
    _call = _elementwise(_name, getattr(operator, _name))
    setattr(ndarray, f"__{_name}__", _call)
    setattr(ndarray, f"__r{_name}__", lambda self, other, call=_call: call(self, other))
    setattr(ndarray, f"__i{_name}__", _in_place(_name))


# The module ---------------------------------------------------------------------------------------


class Stream:
    ptr = 1

    def __init__(self, **_: Any) -> None: ...
    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...
    def synchronize(self) -> None:
        record.waits += 1


def asarray(value: Any, dtype: Any = None) -> ndarray:
    if isinstance(value, ndarray):
        return value if dtype in (None, value.dtype) else value.astype(dtype)
    array = np.asarray(value, dtype=dtype)
    record.add("from the host" if array.ndim else "fill", array, kind="upload" if array.ndim else "cupy")
    return empty(array.shape, array.dtype)


def gemm_ex(*arguments: Any) -> None:
    """`cublasGemmEx`, whose arguments are named in tests/cuda/cublas_standin.py."""
    N, M, K = arguments[3:6]
    product(M, N, K, arguments[8], arguments[15])


def product(M: int, N: int, K: int, kind: int, out: int, *others: Any) -> None:
    """(M, K) @ (K, N): its factors and its result as arrays of 2- or 4-byte numbers. others: of its epilogue."""
    sizes = [("f4" if code == 0 else "f2", shape) for code, shape in ((kind, (M, K)), (kind, (K, N)), (out, (M, N)))]
    arrays = [np.empty(shape, dtype) for dtype, shape in sizes]
    record.add(f"product {M} x {K} x {N}", *arrays, *others, operations=2.0 * M * N * K, kind="product")


def matmul(a: ndarray, b: ndarray, out: Any = None) -> ndarray:
    *_, K, N = b.shape
    product(a.size // K, N, K, 0, 0)
    return empty((*a.shape[:-1], N), a.dtype) if out is None else out


class Epilogues:
    """`tinygpt.backends.cupy_epilogues.Epilogues` of a GPU that has an algorithm for each of them."""

    def has_gelu(self, dtype: Any, with_bias: bool) -> bool:
        return True

    def linear(self, x: ndarray, weight: ndarray, bias: ndarray) -> ndarray:
        product(len(x), weight.shape[1], len(weight), 2, 2, bias)
        return empty((len(x), weight.shape[1]), x.dtype)

    def linear_gelu(self, x: ndarray, weight: ndarray, bias: Any) -> tuple[ndarray, ndarray]:
        y, z = (empty((len(x), weight.shape[1]), x.dtype) for _ in range(2))
        product(len(x), weight.shape[1], len(weight), 2, 2, bias, z)
        return y, z

    def gelu_gradient(self, dy: ndarray, weight: ndarray, z: ndarray) -> ndarray:
        product(len(dy), *weight.shape, 2, 2, z)
        return empty(z.shape, z.dtype)

    def gradients(self, x: ndarray, dy: ndarray) -> tuple[ndarray, ndarray]:
        dbias = empty(dy.shape[1:], np.float32)
        product(x.shape[1], dy.shape[1], len(x), 2, 0, dbias)
        return empty((x.shape[1], dy.shape[1]), np.float32), dbias


def make() -> Any:
    """The module `cupy`."""
    cupy: Any = types.ModuleType("cupy")
    cupy.__version__, cupy.ndarray = "14.0 on paper", ndarray
    cupy.asarray, cupy.empty, cupy.matmul = asarray, empty, matmul
    cupy.array = lambda a, dtype=None, order=None: a.astype(dtype or a.dtype) if isinstance(a, ndarray) else asarray(a)
    cupy.zeros = cupy.ones = lambda shape, dtype=np.float64: made("fill", shape, dtype)
    cupy.zeros_like = lambda a, order="C": made("fill", a.shape, a.dtype)
    cupy.ones_like = lambda a: made("fill", a.shape, a.dtype)
    cupy.empty_like = lambda a: empty(a.shape, a.dtype)
    cupy.ascontiguousarray = lambda a: a if a.flags.c_contiguous else a.copy()
    cupy.argsort = lambda a, kind=None: made("argsort", a.shape, np.int64, a)
    cupy.stack = lambda parts, axis=0: made(
        "stack", np.stack([held(p) for p in parts], axis).shape, parts[0].dtype, *parts
    )
    cupy.add = _elementwise("add", operator.add)
    cupy.asnumpy = lambda a: a.get()
    for name in ("float32", "float64", "int64", "uint64"):
        setattr(cupy, name, getattr(np, name))
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13000,
        getDeviceProperties=lambda _: {"name": b"paper", "totalGlobalMem": 141 << 30},
        memGetInfo=lambda: (140 << 30, 141 << 30), CUDARuntimeError=RuntimeError,
        CUDA_R_32F=0, CUDA_R_16F=2, CUDA_R_16BF=14,
    )  # fmt: skip
    cublas = types.SimpleNamespace(
        gemmEx=gemm_ex, CUBLAS_COMPUTE_32F=68, CUBLAS_COMPUTE_32F_FAST_TF32=77, CUBLAS_GEMM_DEFAULT=-1
    )
    cupy.cuda = types.SimpleNamespace(
        runtime=runtime, cublas=cublas, get_cublas_handle=lambda: 1, Stream=Stream, get_current_stream=Stream,
        Device=lambda *_: types.SimpleNamespace(id=0, compute_capability="90", synchronize=lambda: None),
        memory=types.SimpleNamespace(OutOfMemoryError=MemoryError), get_allocator=lambda: None,
        set_allocator=lambda new: None,
    )  # fmt: skip
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(used_bytes=lambda: 0, total_bytes=lambda: 0)
    return cupy


# Kernels ------------------------------------------------------------------------------------------


class Device(cupy_kernels.Device):
    """What tinygpt's launchers run on: it records each launch."""

    def __init__(self, cupy: Any) -> None:
        super().__init__(cupy)
        self.pointed: list[Any] = []

    def pointers(self, arrays: Sequence[Any]) -> list[int]:
        self.pointed = list(arrays)
        return super().pointers(arrays)

    def launch(
        self, file: str, kernel: str, real: str, grid: Sequence[int], block: Sequence[int], arguments: Any, shared: int
    ) -> None:
        arrays = [value for value in arguments if isinstance(value, ndarray)]
        record.add(kernel, *arrays, *self.pointed, kind="kernel")
        self.pointed = []


@contextlib.contextmanager
def on_paper() -> Iterator[Record]:
    """Inside the block `import cupy` gives this module, and the CUDA kernels are those of tinygpt."""
    global record
    cupy, record = make(), Record()
    device = Device(cupy)
    products: Any = types.ModuleType("cupy._core._routines_linalg")
    products.COMPUTE_TYPE_DEFAULT, products.COMPUTE_TYPE_TF32 = 1, 7
    products.get_compute_type = lambda dtype: 1
    with (
        patch.dict(sys.modules, {"cupy": cupy, "cupy._core._routines_linalg": products}),
        patch("tinygpt.backends._current", "numpy"),
        patch("tinygpt.backends.cupy.xp", None),
        patch("tinygpt.backends.cupy_kernels.body", lambda cupy, kernel: cuda.body(device, kernel)),
        patch("tinygpt.backends.cupy_kernels.device", lambda cupy: device),
        patch("tinygpt.backends.cupy_epilogues.found", lambda *_: (None if setting() == "0" else Epilogues(), "")),
        patch("tinygpt.random.Generator.normal", unset),
    ):
        yield record


def unset(self: Any, shape: Any, std: float = 1.0, dtype: Any = np.float64) -> np.ndarray:
    """In the place of `Generator.normal`: memory for the weights, which nobody reads."""
    self.stream += 1
    return np.empty(shape if isinstance(shape, tuple) else (math.prod((shape,)),), dtype)
