"""Where arrays live: NumPy in main memory, or CuPy in a GPU's memory.

Only this package and `tinygpt.kernel` know that CuPy or the compiled extension exist. The rest of tinygpt gets an
array's library from `array_module(x)` and calls functions that NumPy and CuPy have in common.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeGuard

import numpy as np

from ..errors import DtypeError, UsageError
from ..typing import Array
from .recording import noted

NAMES = ("numpy", "cupy")
DEVICES = {"cpu": "numpy", "cuda": "cupy"}  # PyTorch's names for the same two
_current = "numpy"


def get(name: str) -> ModuleType:
    """The backend module called `name`, or cpu or cuda. CuPy is imported here, on first use. Raises UsageError."""
    name = backend_name(name)
    if name == "numpy":
        from . import numpy

        return numpy
    from . import cupy

    cupy.require()
    return cupy


def backend_name(name: str) -> str:
    """ "numpy" or "cupy", from either name or from PyTorch's "cpu" and "cuda". Raises UsageError."""
    found = DEVICES.get(name, name) if isinstance(name, str) else name
    if found not in NAMES:
        choice = (
            "choose a GPU with CUDA_VISIBLE_DEVICES" if str(name).startswith("cuda:") else "or cpu and cuda for these"
        )
        raise UsageError(f"there is no backend {name!r}: choose one of {', '.join(NAMES)}, {choice}")
    return found


def current() -> str:
    """The name of the backend on which new tensors are made."""
    return _current


class use_backend:
    """Make new tensors on backend `name` from now on or, in a `with` statement, until the end of the block.

    name: "numpy" or "cupy", or PyTorch's "cpu" or "cuda". tf32: for "cupy" only: whether float32 matrix products may
    use TF32 (see `tinygpt.backends.cupy`); None leaves the setting alone. Raises UsageError if the backend is unknown
    or something that it needs is missing.
    """

    def __init__(self, name: str, tf32: bool | None = None) -> None:
        global _current
        backend, name = get(name), backend_name(name)
        if tf32 is not None and name != "cupy":
            raise UsageError(f"use_backend: tf32 is an option of the backend 'cupy', not of {name!r}")
        self.tf32 = None if tf32 is None else backend.set_tf32(tf32)  # the previous setting
        self.previous, _current = _current, name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _current
        _current = self.previous
        if self.tf32 is not None:
            get("cupy").set_tf32(self.tf32)


def array_module(array: Any) -> Any:
    """numpy or cupy: the library whose array this is. Raises DtypeError if it is not an array."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    _require_array(array)
    return get("cupy").xp


def name_of(array: Any) -> str:
    """ "numpy" or "cupy". Raises DtypeError if `array` is not an array."""
    if isinstance(array, (np.ndarray, np.generic)):
        return "numpy"
    _require_array(array)
    return "cupy"


def is_array(value: object) -> TypeGuard[Array]:
    """Whether this is an array of either library. Never imports CuPy."""
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def memory_of(array: Any) -> Any:
    """The array that owns the memory of `array`: itself, or the one it is a view of."""
    base = array.base
    while base is not None and is_array(base):
        array, base = base, base.base
    return array


def _require_array(value: Any) -> None:
    if not is_array(value):
        raise DtypeError(
            f"expected an array of NumPy or CuPy, not {type(value).__name__}: make one with np.asarray(...)"
        )


def different_backends(where: str, *arrays: Any) -> UsageError:
    """The error for an operation whose inputs live on different backends."""
    names = ", ".join(name_of(array) for array in arrays)
    return UsageError(f"{where}: its inputs live on different backends ({names}): move them with .to(backend)")


def from_host(operation: str, name: str, array: Any, like: Any) -> Any:
    """A copy of ids, targets or an index array on the backend of `like`, for an operation that will save it.

    It must be a copy because the caller may refill the buffer with the next batch before the backward pass. A NumPy
    array is moved to the GPU, since data comes from the host. The opposite direction is refused: it would silently wait
    for the GPU.
    """
    if name_of(array) == "cupy" and name_of(like) == "numpy":
        raise UsageError(
            f"{operation}: {name} live on the backend 'cupy' and the other input on 'numpy': move one of them"
        )
    moved = move(array, name_of(like))
    return copied(moved) if moved is array else moved


@noted
def copied(array: Any) -> Any:
    return array.copy()


def address(array: Any) -> int:
    """The address of an array's first element, in main memory or the GPU's. Raises DtypeError if it is not an array."""
    return int(array.ctypes.data if name_of(array) == "numpy" else array.data.ptr)


def one(like: Any) -> Any:
    """The number 1 as a 0-d array of `like`'s library and dtype. On a GPU it is the same array each time: `as_factor`
    recognizes it, and nobody may write into it."""
    return np.ones((), like.dtype) if name_of(like) == "numpy" else get("cupy").one(like.dtype)


def as_factor(number: Any) -> Any:
    """A 0-d array as a factor: a float, or on a GPU the array itself, since reading its value would mean waiting."""
    if name_of(number) == "numpy":
        return float(number)
    return 1.0 if number is get("cupy").one(number.dtype) else number


def room(array: Any) -> int:
    """By what factor a temporary array on `array`'s backend may be larger than on a CPU: 1, or on a GPU more."""
    return 1 if name_of(array) == "numpy" else int(get("cupy").room())


def epilogues(array: Any) -> Any:
    """Matrix products that include a bias, a GELU or a gradient of these, for arrays like this one: see
    `cupy_epilogues.py`. None if there are none: on a CPU, and in float32."""
    return None if name_of(array) == "numpy" else get("cupy").epilogues(array.dtype)


def move(array: Any, name: str) -> Any:
    """The array on backend `name`; the same array if it is there already. Raises UsageError for an unknown name."""
    name = backend_name(name)
    if name_of(array) == name:
        return array
    if name == "numpy":
        return get("cupy").to_numpy(array)
    return get(name).asarray(array)
