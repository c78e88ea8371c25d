"""The CuPy backend: arrays in a GPU's memory.

CuPy is imported by `require()`, which `tinygpt.backends.get("cupy")` calls at first use. `import
tinygpt` never comes here, so a machine without a GPU, a driver or CuPy is no obstacle to the CPU.

Memory comes from CuPy's pool, which keeps what is freed for the next array: `memory()` tells how much that is,
`free_unused()` gives it back. Work goes to CuPy's current stream, the kernels too, so `with cupy.cuda.Stream():` is all
that it takes to use another one; `to_numpy` waits for it, `synchronize()` does nothing else.

Products of float32 matrices are float32 unless TF32 is asked for: `tinygpt.use_backend("cupy", tf32=True)`, or
TINYGPT_TF32=1 in the environment. TF32 rounds the factors to 11 significant bits, for speed, on GPUs of compute
capability 8.0 and newer. It acts on products of two matrices, which the model's layers are.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError
from . import cupy_setup, recording

name = "cupy"
xp: Any = None
TF32_FROM = 80  # compute capability, times ten


def require() -> Any:
    """Import CuPy and check that a GPU answers; one sentence says what is missing."""
    global xp
    if xp is not None:
        return xp
    cupy = cupy_setup.import_cupy()
    cupy_setup.require_gpu(cupy)
    cupy_setup.explain_out_of_memory(cupy)
    wanted = os.environ.get("TINYGPT_TF32", "")
    if wanted not in ("", "0", "1"):
        raise UsageError(f"TINYGPT_TF32 is {wanted!r}: set it to 0 or 1")
    xp = cupy
    try:
        if wanted:  # otherwise it is as CuPy's own CUPY_TF32 has it
            set_tf32(wanted == "1")
    except UsageError:
        xp = None
        raise
    return xp


def asarray(array: Any, dtype: Any = None) -> Any:
    if recording.recorder is not None and isinstance(array, np.ndarray):
        return recording.recorder.on_device(array, dtype)
    return require().asarray(array, dtype=dtype)


def to_numpy(array: Any) -> np.ndarray:
    return require().asnumpy(array)


def synchronize() -> None:
    """Wait until all that was asked of the GPU is done."""
    require().cuda.get_current_stream().synchronize()


def native_body(kernel: str) -> Callable[..., Any] | None:
    """The CUDA body of a kernel, or None: then its reference body runs, on the GPU."""
    from .cupy_kernels import body

    return body(require(), kernel)


# Memory -------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes: free and total on the GPU, whoever uses it; used by this process's arrays; held by its pool."""

    free: int
    total: int
    used: int
    held: int


def memory() -> Memory:
    """How the GPU's memory is used."""
    cupy = require()
    pool = cupy.get_default_memory_pool()
    free, total = cupy.cuda.runtime.memGetInfo()
    return Memory(free, total, pool.used_bytes(), pool.total_bytes())


def free_unused() -> None:
    """Give memory back that no array uses any more, for other processes on the GPU."""
    require().get_default_memory_pool().free_all_blocks()


# Products -----------------------------------------------------------------------------------------


def set_tf32(enabled: bool) -> bool:
    """Products of float32 matrices in TF32, or in float32 again. Returns what it was before.

    Raises UsageError on a GPU that has no TF32.
    """
    cupy = require()
    capability = int(cupy.cuda.Device().compute_capability)
    if enabled and capability < TF32_FROM:
        raise UsageError(
            f"the GPU {cupy_setup.gpu_name(cupy)} has no TF32: its compute capability is "
            f"{cupy_setup.decimal(capability)}, and {cupy_setup.decimal(TF32_FROM)} is the least: leave tf32 off"
        )
    before, products = uses_tf32(), _products()
    products.set_compute_type(np.float32, products.COMPUTE_TYPE_TF32 if enabled else products.COMPUTE_TYPE_DEFAULT)
    return before


def uses_tf32() -> bool:
    """Whether products of float32 matrices are done in TF32, by this or by CuPy's own CUPY_TF32."""
    require()
    products = _products()
    return products.get_compute_type(np.float32) == products.COMPUTE_TYPE_TF32


def _products() -> Any:
    """Where CuPy keeps this setting; it has no public place."""
    return importlib.import_module("cupy._core._routines_linalg")


def describe() -> str:
    """One line: what runs here."""
    cupy = require()
    capability = cupy_setup.decimal(int(cupy.cuda.Device().compute_capability))
    cuda = cupy_setup.cuda_version(cupy.cuda.runtime.runtimeGetVersion())
    return (
        f"CuPy {cupy.__version__} on {cupy_setup.gpu_name(cupy)} (compute capability {capability}, "
        f"{cupy_setup.in_bytes(memory().total)}); CUDA {cuda}{'; TF32' if uses_tf32() else ''}"
    )
