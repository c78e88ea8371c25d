"""The arrays of the stand-in for CuPy (`standin.py`): what they have of methods and operators, and what they refuse."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.cuda import capture
from tests.cuda.capture import launched, not_while_capturing, written

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
