"""The NumPy backend: arrays in the computer's memory, the compiled extension, its threads."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import UsageError

name = "numpy"
xp = np


def asarray(array: Any, dtype: Any = None) -> np.ndarray:
    return np.asarray(array, dtype=dtype)


def to_numpy(array: np.ndarray) -> np.ndarray:
    return array


@functools.cache
def extension() -> ModuleType | None:
    """The compiled kernels for this processor, or None when they were not built."""
    return importlib.import_module("tinygpt._ext").load()


_bodies: dict[str, Callable[..., Any] | None] = {}


def native_body(kernel: str, required: bool = False) -> Callable[..., Any] | None:
    """The compiled body of a kernel, or None. required: a missing extension is an error."""
    try:
        body = _bodies[kernel]
    except KeyError:
        body = _bodies[kernel] = getattr(extension(), kernel, None)
    if body is None and required and extension() is None:
        raise UsageError(
            "TINYGPT_KERNELS=cython, but the compiled extension is not built: "
            "install with TINYGPT_EXT=require to see why"
        )
    return body


def describe() -> str:
    """One line: what runs here."""
    module = extension()
    if module is None:
        return f"NumPy {np.__version__}; no compiled extension: the reference bodies run"
    return f"NumPy {np.__version__}; compiled extension for {module.__name__.rpartition('.')[2]}; {module.threads_report()}"


def set_num_threads(count: int) -> None:
    """Use `count` threads for the compiled kernels and for the matrix products."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UsageError(f"set_num_threads needs a whole number of at least 1, not {count!r}")
    module = extension()
    if module is None:
        raise UsageError(
            "set_num_threads needs the compiled extension, which is not built: "
            "set OPENBLAS_NUM_THREADS before Python starts instead"
        )
    module.set_num_threads(count)


def get_num_threads() -> int:
    """How many threads the compiled kernels and the matrix products use."""
    module = extension()
    return 1 if module is None else module.get_num_threads()
