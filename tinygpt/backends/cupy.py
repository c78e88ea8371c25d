"""The CuPy backend: arrays in a GPU's memory.

CuPy is imported by `require()`, which `tinygpt.backends.get("cupy")` calls at first use. `import
tinygpt` never comes here, so a machine without a GPU, a driver or CuPy is no obstacle to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import MissingExtraError, UsageError

name = "cupy"
xp: Any = None


def require() -> Any:
    """Import CuPy and check that a GPU answers; one sentence says what is missing."""
    global xp
    if xp is not None:
        return xp
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError(
            "the backend 'cupy' needs CuPy, which is not installed: "
            "pip install 'tinygpt[cuda12]' (or cuda13, to match your driver)"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise UsageError(
            f"the backend 'cupy' finds no usable NVIDIA driver ({error}): "
            "install the driver, or use the backend 'numpy'"
        ) from error
    if count == 0:
        raise UsageError("the backend 'cupy' finds no GPU on this machine: use the backend 'numpy'")
    xp = cupy
    return xp


def asarray(array: Any, dtype: Any = None) -> Any:
    return require().asarray(array, dtype=dtype)


def to_numpy(array: Any) -> np.ndarray:
    return require().asnumpy(array)


def native_body(kernel: str) -> Callable[..., Any] | None:
    """The CUDA body of a kernel, or None: then its reference body runs, on the GPU."""
    from .cupy_kernels import body

    return body(require(), kernel)


def describe() -> str:
    """One line: what runs here."""
    cupy = require()
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return f"CuPy {cupy.__version__} on {device}"
