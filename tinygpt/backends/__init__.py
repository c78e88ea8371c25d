"""Where arrays live: NumPy in the computer's memory, or CuPy in a GPU's.

Only this package and `tinygpt.kernel` know that CuPy or the compiled extension exist. The rest of
tinygpt asks `array_module(x)` for the library an array belongs to and calls the functions the two
have in common.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..errors import DtypeError, UsageError

NAMES = ("numpy", "cupy")
_current = "numpy"


def get(name: str) -> ModuleType:
    """The backend module called `name`. CuPy is imported here, at first use, and not before."""
    if name == "numpy":
        from . import numpy

        return numpy
    if name == "cupy":
        from . import cupy

        cupy.require()
        return cupy
    raise UsageError(f"there is no backend {name!r}: choose one of {', '.join(NAMES)}")


def current() -> str:
    """The name of the backend that new tensors go to."""
    return _current


class use_backend:
    """Send new tensors to `name` from now on, or, as a `with` block, until its end.

    tf32: of "cupy": whether products of float32 matrices may be done in TF32 (see `tinygpt.backends.cupy`); None
    leaves that as it is. Raises UsageError: an unknown backend, or what is missing for it.
    """

    def __init__(self, name: str, tf32: bool | None = None) -> None:
        global _current
        backend = get(name)
        if tf32 is not None and name != "cupy":
            raise UsageError(f"use_backend: tf32 is an option of the backend 'cupy', not of {name!r}")
        self.tf32 = None if tf32 is None else backend.set_tf32(tf32)  # what it was
        self.previous, _current = _current, name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _current
        _current = self.previous
        if self.tf32 is not None:
            get("cupy").set_tf32(self.tf32)


def array_module(array: Any) -> Any:
    """numpy or cupy: the library whose array this is. Raises DtypeError for what is no array."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    _require_array(array)
    return get("cupy").xp


def name_of(array: Any) -> str:
    """ "numpy" or "cupy". Raises DtypeError for what is no array."""
    if isinstance(array, (np.ndarray, np.generic)):
        return "numpy"
    _require_array(array)
    return "cupy"


def is_array(value: Any) -> bool:
    """True for an array of either library; never imports CuPy."""
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def _require_array(value: Any) -> None:
    if not is_array(value):
        raise DtypeError(
            f"expected an array of NumPy or CuPy, not {type(value).__name__}: make one with np.asarray(...)"
        )


def different_backends(where: str, *arrays: Any) -> UsageError:
    """The error for arrays that meet in one operation and live on different backends."""
    names = ", ".join(name_of(array) for array in arrays)
    return UsageError(f"{where}: its inputs live on different backends ({names}): move them with .to(backend)")


def from_host(operation: str, name: str, array: Any, like: Any) -> Any:
    """Ids, targets and index arrays for an operation on the array `like`, in memory of the operation's own.

    It keeps them for its backward pass, and a caller may fill the same buffer with the next batch before that. Data
    comes from the host, so a NumPy array goes to where `like` is. The other way it would be a wait for the GPU
    that nobody asked for: that is refused.
    """
    if name_of(array) == "cupy" and name_of(like) == "numpy":
        raise UsageError(
            f"{operation}: {name} live on the backend 'cupy' and the other input on 'numpy': move one of them"
        )
    moved = move(array, name_of(like))
    return moved.copy() if moved is array else moved


def address(array: Any) -> int:
    """Where an array's first element lies, in the memory of its library. Raises DtypeError for what is no array."""
    return int(array.ctypes.data if name_of(array) == "numpy" else array.data.ptr)


def as_factor(number: Any) -> Any:
    """An array without axes, to multiply by: a float or, on a GPU, the array itself, so that nobody waits for it."""
    return float(number) if name_of(number) == "numpy" else number


def move(array: Any, name: str) -> Any:
    """The array on backend `name`; itself when it is there already."""
    if name_of(array) == name:
        return array
    if name == "numpy":
        return get("cupy").to_numpy(array)
    return get(name).asarray(array)
