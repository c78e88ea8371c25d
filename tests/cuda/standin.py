"""A module that behaves as CuPy does where CuPy differs from NumPy, and computes with NumPy, on the CPU.

    with installed():            # `import cupy` now gives the stand-in; tinygpt's backend "cupy" runs on it
        x = tg.tensor([1.0, 2.0], backend="cupy")

What it shows: that the code of tinygpt, given CuPy's arrays, keeps to what CuPy can do. As in CuPy

- an array is not a NumPy array: implicit conversion (np.asarray(x)), NumPy's functions, and operators between the two
  raise TypeError (here NumPy's functions always do, where CuPy would carry some of them out);
- what reduces to one number, and x[0] of one axis, gives an array without axes, never a NumPy scalar;
- there are only the functions, methods, keywords and flags that CuPy has: anything not in the tables below is an
  AttributeError or a TypeError. Where CuPy is installed, `test_standin.py` compares the tables with it;
- an index array that reaches beyond its axis wraps around without a word;
- `ufunc.reduceat` is add's alone, and `add.at` takes no 64-bit signed integers.

What it cannot show: anything about a GPU. It is NumPy that computes, in one thread's order, so nothing is learnt about
how CuPy or cuBLAS round, about speed, memory, or the kernels; those run elsewhere (`emulator.py`). Of streams
there is what CUDA graphs need: `capture.py`.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import capture, cublas_standin
from tests.cuda.capture import launched, not_while_capturing, written
from tests.cuda.standin_arrays import bare, bound, ndarray, no_product_while_capturing, wrapped
from tinygpt.backends import cupy_graph, cupy_kernels

# What CuPy has, of what tinygpt might use -----------------------------------------------------------

# Functions and their parameters, in order.
FUNCTIONS = {
    "array": "obj dtype copy order subok ndmin", "asarray": "a dtype order", "ascontiguousarray": "a dtype",
    "empty": "shape dtype order", "zeros": "shape dtype order", "ones": "shape dtype order",
    "full": "shape fill_value dtype order", "empty_like": "prototype dtype order subok shape",
    "zeros_like": "a dtype order subok shape", "ones_like": "a dtype order subok shape",
    "full_like": "a fill_value dtype order subok shape", "arange": "start stop step dtype", "tri": "N M k dtype",
    "eye": "N M k dtype order", "concatenate": "tup axis out", "stack": "tup axis out", "where": "condition x y",
    "moveaxis": "a source destination", "broadcast_to": "array shape", "repeat": "a repeats axis",
    "argsort": "a axis kind", "flatnonzero": "a", "count_nonzero": "a axis", "clip": "a a_min a_max out",
    "array_equal": "a1 a2 equal_nan", "copyto": "dst src casting where", "take": "a indices axis out",
}  # fmt: skip
UFUNCS = (
    "exp", "log", "log1p", "sqrt", "square", "tanh", "abs", "sign", "rint", "copysign", "maximum", "minimum",
    "isfinite", "isnan", "isinf", "add", "subtract", "multiply", "divide", "negative", "power", "matmul",
    "floor", "ceil", "frexp", "ldexp",
)  # fmt: skip
CONSTANTS = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool_",
    "dtype", "inf", "nan", "pi", "newaxis", "finfo", "iinfo",
)  # fmt: skip
ADD_AT = ("int32", "uint32", "uint64", "float16", "float32", "float64")  # the dtypes of atomicAdd

# The module ---------------------------------------------------------------------------------------


class Ufunc:
    """One of NumPy's, with what CuPy has of it."""

    def __init__(self, name: str) -> None:
        self.name, self.numpy = name, getattr(np, name)

    def __call__(self, *args: Any, out: Any = None, dtype: Any = None) -> Any:
        options, given = {} if dtype is None else {"dtype": dtype}, bare(args)
        if self.name == "matmul":
            no_product_while_capturing()
        if out is None:
            return wrapped(launched(lambda: self.numpy(*given, **options)))
        written(lambda: self.numpy(*given, out=out.held, **options))
        return out

    def reduceat(self, array: ndarray, indices: ndarray, axis: int = 0, dtype: Any = None) -> ndarray:
        if self.name != "add":
            raise NotImplementedError(f"`cupy_{self.name}.reduceat` is not supported yet")
        x, where = bare(array), bare(indices)
        return wrapped(launched(lambda: np.add.reduceat(x, where, axis=axis, dtype=dtype)))

    def at(self, array: ndarray, key: Any, values: Any) -> None:
        if self.name != "add":
            raise NotImplementedError(f"`cupy_{self.name}.at` is not supported here")
        if array.dtype.name not in ADD_AT:
            raise TypeError(f"scatter_add does not support {array.dtype}")
        given = bare(values)
        written(lambda: np.add.at(array.held, array._key(key), given))


def _function(name: str) -> Callable[..., Any]:
    function, parameters = getattr(np, name), FUNCTIONS[name]

    def call(*args: Any, **kwargs: Any) -> Any:
        bound(name, parameters, args, kwargs)
        kwargs.pop("casting", None)
        given, named = bare(args), {key: bare(value) for key, value in kwargs.items()}
        if name in ("flatnonzero", "repeat", "array_equal"):  # shapes and answers that depend on values
            not_while_capturing()
        if name == "copyto" or named.get("out") is not None:
            written(lambda: function(*given, **named))
            return kwargs.get("out")
        result = launched(lambda: function(*given, **named), *given, *named.values())
        if isinstance(result, (bool, int)):  # count_nonzero
            result = np.asarray(result)
        if args and isinstance(args[0], ndarray) and isinstance(result, np.ndarray):
            return args[0]._view(result)
        return wrapped(result)

    return call


def _from_host(name: str) -> Callable[..., Any]:
    """array and asarray: they take NumPy's arrays, and copy them."""
    plain = _function(name)

    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, ndarray) and name == "asarray" and kwargs.get("dtype") in (None, value.dtype) and not args:
            return value
        if isinstance(value, ndarray):
            return plain(value, *args, **kwargs)
        bound(name, FUNCTIONS[name], (value, *args), kwargs)
        made = np.array(value, *args, **kwargs)
        if made.ndim:
            not_while_capturing("a copy from the host, in a stream that is captured")
        return ndarray(launched(made.copy))

    return call


def on_gpu(array: Any) -> ndarray:
    """NumPy's array as one on the GPU, with the same strides."""
    return ndarray(np.asarray(array))


def make() -> types.ModuleType:
    """The module."""
    module: Any = types.ModuleType("cupy")
    module.__version__ = "stand-in"
    module.ndarray = ndarray
    for name in FUNCTIONS:
        setattr(module, name, (_from_host if name in ("array", "asarray") else _function)(name))
    for name in UFUNCS:
        setattr(module, name, Ufunc(name))
    for name in CONSTANTS:
        setattr(module, name, getattr(np, name))
    module.asnumpy = lambda array: array.get() if isinstance(array, ndarray) else np.asarray(array)
    module.cuda = make_cuda()
    module.get_default_memory_pool = lambda: types.SimpleNamespace(
        used_bytes=lambda: 1 << 20,
        total_bytes=lambda: 3 << 20,
        free_all_blocks=lambda: None,
        malloc=lambda size: types.SimpleNamespace(size=size),
    )
    return module


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""


class CUDARuntimeError(RuntimeError):
    """As `cupy.cuda.runtime.CUDARuntimeError`."""


def make_cuda(capability: str = "90") -> Any:
    """`cupy.cuda`, of a machine with one GPU where all is well."""
    allocator: list[Any] = [lambda size: types.SimpleNamespace(size=size)]
    cuda: Any = types.SimpleNamespace()
    cuda.runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13000,
        getDeviceProperties=lambda _: {"name": b"stand-in", "totalGlobalMem": 16 << 30, "multiProcessorCount": 4},
        memGetInfo=lambda: (8 << 30, 16 << 30), CUDARuntimeError=CUDARuntimeError,
        CUDA_R_32F=0, CUDA_R_16F=2, CUDA_R_16BF=14,
    )  # fmt: skip
    cuda.cublas, cuda.get_cublas_handle = cublas_standin, lambda: 1
    cuda.Device = lambda *_: types.SimpleNamespace(id=0, compute_capability=capability, synchronize=lambda: None)
    cuda.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cuda.get_allocator = lambda: allocator[0]
    cuda.set_allocator = lambda new: allocator.__setitem__(0, new)
    capture.add_to(cuda)
    return cuda


def make_products() -> Any:
    """`cupy._core._routines_linalg`: the choice of how float32 is multiplied."""
    products: Any = types.ModuleType("cupy._core._routines_linalg")
    products.COMPUTE_TYPE_DEFAULT, products.COMPUTE_TYPE_TF32 = 1, 7
    chosen = {np.float32: 1}
    products.get_compute_type = chosen.__getitem__
    products.set_compute_type = chosen.__setitem__
    return products


@contextlib.contextmanager
def installed(module: Any = None, bodies: Callable[[str], Any] | None = None) -> Iterator[Any]:
    """Inside the block `import cupy` gives the stand-in, or `module`, and tinygpt has forgotten any other.

    bodies: the kernels: a function from a name to a body or None; without it the reference bodies run.
    """
    with pytest.MonkeyPatch.context() as patch:
        module = make() if module is None else module
        patch.setitem(sys.modules, "cupy", module)
        patch.setitem(sys.modules, "cupy._core._routines_linalg", make_products())
        patch.setattr("tinygpt.backends._current", "numpy")  # and what a command line chose is forgotten afterwards
        patch.setattr("tinygpt.backends.cupy.xp", None)
        patch.setattr("tinygpt.backends.cupy.native_body", bodies or (lambda kernel: None))
        yield module


@contextlib.contextmanager
def recording(patch: pytest.MonkeyPatch, bodies: Callable[[str], Any]) -> Iterator[capture.Cublas]:
    """Inside the block tensors are on the stand-in, kernels are `bodies`, and streams can be captured."""
    library = capture.Cublas()
    patch.setattr(cupy_graph, "load_cublas", lambda cupy: library)
    cupy_kernels.device.cache_clear()
    with installed(bodies=bodies), tg.use_kernels("auto"), tg.use_backend("cupy"):
        yield library
    cupy_kernels.device.cache_clear()
