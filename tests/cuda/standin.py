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

from tests.cuda import capture, cublas_standin
from tests.cuda.capture import launched, not_while_capturing, written

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
# Methods that go over to NumPy's of the same name, and their parameters.
METHODS = {
    "sum": "axis dtype out keepdims", "mean": "axis dtype out keepdims", "max": "axis out keepdims",
    "min": "axis out keepdims", "all": "axis out keepdims", "any": "axis out keepdims",
    "argmax": "axis out dtype keepdims", "argsort": "axis kind", "squeeze": "axis", "swapaxes": "axis1 axis2",
    "view": "dtype", "copy": "order", "ravel": "order", "take": "indices axis out", "repeat": "repeats axis",
    "astype": "dtype order casting subok copy", "fill": "value", "nonzero": "", "cumsum": "axis dtype out",
}  # fmt: skip
OWN_METHODS = ("reshape", "transpose", "item", "tolist", "get", "set")
ATTRIBUTES = ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides", "T", "data", "base", "flags", "device")
OPERATORS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift",
)  # fmt: skip
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
ADD_AT = ("int32", "uint32", "uint64", "float16", "float32", "float64")  # the dtypes of atomicAdd

# Arrays -------------------------------------------------------------------------------------------


class ndarray:
    """An array "on the GPU": `held` is the NumPy array that nobody but this module looks at."""

    __slots__ = ("__weakref__", "base", "held")  # CuPy's arrays take weak references, too
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, held: np.ndarray, base: ndarray | None = None) -> None:
        assert type(held) is np.ndarray
        self.held, self.base = held, base

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed: use .get()")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was given an array of CuPy's")

    @property
    def flags(self) -> Any:
        flags = self.held.flags
        return types.SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=self.base is None
        )

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.held.ctypes.data)

    @property
    def device(self) -> Any:
        return 0

    @property
    def T(self) -> ndarray:
        return self._view(self.held.T)

    def _view(self, held: Any) -> ndarray:
        """A result of this array, which may share its memory."""
        made = wrapped(held)
        if made.size and np.may_share_memory(made.held, self.held):
            made.base = self if self.base is None else self.base
        return made

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        not_while_capturing()
        return bool(self.held)

    def __int__(self) -> int:
        not_while_capturing()
        return int(self.held)

    def __float__(self) -> float:
        not_while_capturing()
        return float(self.held)

    def __repr__(self) -> str:
        return f"cupy.{self.held!r}"

    def __getitem__(self, key: Any) -> ndarray:
        return self._view(launched(lambda: self.held[self._key(key)], self.held))

    def __setitem__(self, key: Any, value: Any) -> None:
        given = bare(value)
        self._key(key)  # what is refused is refused now
        written(lambda: self.held.__setitem__(self._key(key), given))

    def _key(self, key: Any) -> tuple[Any, ...]:
        """For NumPy: index arrays reduced to their axis, and `...` at the end, so that a number is a view of one."""
        parts = [self._index(part) for part in (key if isinstance(key, tuple) else (key,))]
        taken = sum(axes_of(part) for part in parts)
        if not any(part is Ellipsis for part in parts):
            parts.append(Ellipsis)
        axis = 0
        for place, part in enumerate(parts):
            if isinstance(part, np.ndarray) and part.dtype.kind in "iu" and axis < self.ndim and self.shape[axis]:
                parts[place] = part.astype(np.int64) % self.shape[axis]
            axis += self.ndim - taken if part is Ellipsis else axes_of(part)
        return tuple(parts)

    @staticmethod
    def _index(part: Any) -> Any:
        if isinstance(part, ndarray):
            if part.dtype.kind == "b":  # how many there are is for the host to know
                not_while_capturing()
            return part.held
        if isinstance(part, (list, np.ndarray)):  # copied to the GPU
            not_while_capturing()
        if isinstance(part, list):
            array = np.array(part)
            return array.astype(np.int32) if array.size == 0 else array
        return part  # NumPy's index arrays too

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return self._view(launched(lambda: self.held.reshape(*shape, order=order), self.held))

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self.held.transpose(*axes))

    def item(self) -> Any:
        not_while_capturing()
        return self.held.item()

    def tolist(self) -> Any:
        not_while_capturing()
        return self.held.tolist()

    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        not_while_capturing()
        if out is None:
            return self.held.copy()
        assert (out.shape, out.dtype, out.flags.c_contiguous) == (self.shape, self.dtype, True)
        out[...] = self.held
        return out

    def set(self, array: np.ndarray, stream: Any = None) -> None:
        not_while_capturing()
        self.held[...] = array

    def __neg__(self) -> ndarray:
        return wrapped(launched(lambda: -self.held))

    def __invert__(self) -> ndarray:
        return wrapped(launched(lambda: ~self.held))

    def __abs__(self) -> ndarray:
        return wrapped(launched(lambda: abs(self.held)))


ndarray.__module__ = "cupy"


def wrapped(value: Any) -> Any:
    """NumPy's results as arrays on the GPU; scalars become arrays without axes."""
    if isinstance(value, tuple):
        return tuple(wrapped(one) for one in value)
    return ndarray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def bare(value: Any) -> Any:
    """The NumPy array behind an argument. NumPy's own arrays are refused; its scalars and Python's pass."""
    if isinstance(value, ndarray):
        return value.held
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (list, tuple)):
        return type(value)(bare(one) for one in value)
    return value


def axes_of(part: Any) -> int:
    """How many axes of an array a part of a key takes."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype.kind == "b" else 1


def no_product_while_capturing() -> None:
    if capture.current() is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def bound(name: str, parameters: str, args: Any, kwargs: Any) -> None:
    """Refuse what CuPy's function has no parameter for."""
    known = parameters.split()
    if len(args) > len(known) or not set(kwargs) <= set(known[len(args) :]):
        raise TypeError(f"cupy.{name} has the parameters {known}, and was given {len(args)} and {list(kwargs)}")


# Operators and methods ------------------------------------------------------------------------------


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: ndarray, other: Any) -> Any:
        if not isinstance(other, (ndarray, np.ndarray, np.generic, int, float)):
            return NotImplemented
        if name in ("__matmul__", "__rmatmul__"):
            no_product_while_capturing()
        operand = bare(other)
        return wrapped(launched(lambda: getattr(self.held, name)(operand)))

    return operate


def _in_place(name: str) -> Callable[..., Any]:
    def operate(self: ndarray, other: Any) -> Any:
        operand = bare(other)
        written(lambda: getattr(self.held, name)(operand))
        return self

    return operate


def _method(name: str, parameters: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        bound(f"ndarray.{name}", parameters, args, kwargs)
        positional, named = bare(args), {key: bare(value) for key, value in kwargs.items()}
        if name == "nonzero":
            not_while_capturing()
        if name == "fill" or named.get("out") is not None:
            written(lambda: getattr(self.held, name)(*positional, **named))
            return kwargs.get("out")
        return self._view(launched(lambda: getattr(self.held, name)(*positional, **named), self.held))

    return method


for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name, _parameters in METHODS.items():
    setattr(ndarray, _name, _method(_name, _parameters))
for _name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides"):
    setattr(ndarray, _name, property(lambda self, name=_name: getattr(self.held, name)))

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
