"""The NumPy backend: arrays in main memory, the compiled extension, and its threads."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from ..checks import whole_number
from ..cores import MAX_THREADS, default_num_threads
from ..errors import UsageError

name = "numpy"
xp = np


def asarray(array: Any, dtype: Any = None) -> np.ndarray:
    return np.asarray(array, dtype=dtype)


def to_numpy(array: np.ndarray) -> np.ndarray:
    return array


@functools.cache
def extension() -> ModuleType | None:
    """The compiled kernels for this processor, or None if they were not built.

    The first call starts the thread team and makes NumPy's matrix products run on it too (see `_ext/threads/pool.c`).
    """
    module: ModuleType | None = importlib.import_module("tinygpt._ext").load()
    if module is not None:
        module.start_threads(default_num_threads(), blas_library())
    return module


def blas_library() -> str:
    """The path of the NumPy module that is linked to BLAS."""
    return importlib.import_module("numpy._core._multiarray_umath").__file__ or ""


_bodies: dict[str, Callable[..., Any] | None] = {}


def native_body(kernel: str, required: bool = False) -> Callable[..., Any] | None:
    """The compiled body of a kernel, or None. required: raise UsageError if the extension is missing."""
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


def uniform_body() -> Callable[..., None] | None:
    """The compiled `fill_uniform` of tinygpt/random.py, or None."""
    return native_body("fill_uniform")


def level() -> str:
    """The level of instructions that the compiled kernels use, such as "avx2"; "none" without them."""
    module = extension()
    return "none" if module is None else module.__name__.rpartition(".")[2]


def has_bfloat16_products() -> bool:
    """Whether the processor and the compiled kernels multiply bfloat16 matrices, faster than float32 ones."""
    module = extension()
    return module is not None and bool(module.has_bfloat16_products())


def describe() -> str:
    """One line: NumPy's version, the compiled extension and its threads."""
    module = extension()
    if module is None:
        return f"NumPy {np.__version__}; no compiled extension: the reference bodies run"
    return f"NumPy {np.__version__}; compiled extension for {level()}; {module.threads_report()}"


def set_num_threads(count: int) -> None:
    """Use `count` threads (at most MAX_THREADS) for the compiled kernels and matrix products."""
    count = whole_number("set_num_threads", "count", count)
    module = extension()
    if module is None:
        raise UsageError(
            "set_num_threads needs the compiled extension, which is not built: "
            "set OPENBLAS_NUM_THREADS before Python starts instead"
        )
    module.set_num_threads(min(count, MAX_THREADS))


def get_num_threads() -> int:
    """How many threads the compiled kernels and matrix products use."""
    module = extension()
    return 1 if module is None else module.get_num_threads()
