"""The CuPy backend: arrays in a GPU's memory.

CuPy is imported by `require()`, which `tinygpt.backends.get("cupy")` calls on first use. `import tinygpt` does not
import it, so tinygpt runs on the CPU without a GPU, a driver or CuPy.

Memory comes from CuPy's pool, which keeps freed memory for later arrays: `memory()` says how much it holds, and
`free_unused()` returns it to the GPU. All work, our kernels included, goes to CuPy's current CUDA stream; to use
another one, write `with cupy.cuda.Stream():`. `to_numpy` waits for the stream to finish, and so does `synchronize()`.

Float32 matrix products are computed in float32 unless you ask for TF32, with `tinygpt.use_backend("cupy", tf32=True)`
or TINYGPT_TF32=1 in the environment. TF32 rounds the factors to 11 significant bits and is faster; it needs a GPU of
compute capability 8.0 or newer. It affects products of two matrices, which includes all of the model's layers.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..console import in_bytes
from ..errors import UsageError
from . import cupy_setup, cupy_tf32, recording

name = "cupy"
xp: Any = None
TF32_FROM = 80  # compute capability, times ten


def require() -> Any:
    """Import CuPy and check that a GPU answers. Raises UsageError, which says what is missing."""
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
        if wanted:  # otherwise CuPy's own CUPY_TF32 decides
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
    """Wait until the GPU has finished all work on the current stream."""
    require().cuda.get_current_stream().synchronize()


def native_body(kernel: str) -> Callable[..., Any] | None:
    """The CUDA body of a kernel, or None: then its reference runs, also on the GPU."""
    from .cupy_kernels import body

    return body(require(), kernel)


def channel(rank: int, size: int, share: Callable[[Any], Any]) -> Any:
    """The GPUs of all processes of a run: see `cupy_nccl.py`."""
    from .cupy_nccl import Channel

    return Channel(require(), rank, size, share)


def choose_gpu(rank_here: int, gather: Callable[[Any], list[Any]]) -> int:
    """Use the GPU of this process, one of several on its machine: see `cupy_nccl.py`."""
    from . import cupy_nccl

    return cupy_nccl.choose_gpu(require(), rank_here, gather)


def epilogues(dtype: Any) -> Any:
    """See `tinygpt.backends.epilogues`."""
    from . import cupy_epilogues

    return cupy_epilogues.epilogues(require()) if dtype.itemsize == 2 else None


def describe_epilogues() -> str:
    """One line for `tinygpt doctor`."""
    from . import cupy_epilogues

    return cupy_epilogues.describe(require())


# Memory -------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """In bytes: free and total, of the whole GPU; used, by this process's arrays; held, by this process's pool."""

    free: int
    total: int
    used: int
    held: int


def memory() -> Memory:
    """How much of the GPU's memory is in use."""
    cupy = require()
    pool = cupy.get_default_memory_pool()
    free, total = cupy.cuda.runtime.memGetInfo()
    return Memory(free, total, pool.used_bytes(), pool.total_bytes())


ROOM = 32 * 64 * 2**20  # bytes of the GPU's memory for each 64 MiB of a temporary array


def room() -> int:
    """See `tinygpt.backends.room`: an array of 64 MiB times this is at most a 32nd of the GPU's memory."""
    return max(1, _total(require()) // ROOM)


@functools.cache
def _total(cupy: Any) -> int:
    return int(cupy.cuda.runtime.memGetInfo()[1])


def one(dtype: Any) -> Any:
    """See `tinygpt.backends.one`."""
    return _one(require(), dtype)


@functools.cache
def _one(cupy: Any, dtype: Any) -> Any:
    return cupy.ones((), dtype)


def free_unused() -> None:
    """Return memory that no array uses any more to the GPU, for other processes."""
    require().get_default_memory_pool().free_all_blocks()


# Between host and GPU ------------------------------------------------------------------------------


def pinned(shape: Any, dtype: Any) -> np.ndarray:
    """A NumPy array in page-locked memory: copies between it and the GPU run while the host does something else."""
    size = math.prod(shape)
    memory = require().cuda.alloc_pinned_memory(max(1, size * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, size).reshape(shape)


class Reading:
    """Arrays on their way from the GPU: `values()` waits for what was launched before this, not for what came later."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        stream = require().cuda.get_current_stream()
        self.hosts = [pinned(array.shape, array.dtype) for array in arrays]
        for array, host in zip(arrays, self.hosts, strict=True):
            array.get(stream=stream, out=host, blocking=False)
        self.done = stream.record()

    def values(self) -> list[np.ndarray]:
        self.done.synchronize()
        return self.hosts


# Products -----------------------------------------------------------------------------------------


def set_tf32(enabled: bool) -> bool:
    """Turn TF32 for float32 matrix products on or off. Returns the previous setting.

    Raises UsageError if the GPU has no TF32.
    """
    cupy = require()
    capability = int(cupy.cuda.Device().compute_capability)
    if enabled and capability < TF32_FROM:
        raise UsageError(
            f"the GPU {cupy_setup.gpu_name(cupy)} has no TF32: its compute capability is "
            f"{cupy_setup.decimal(capability)}, and TF32 needs {cupy_setup.decimal(TF32_FROM)}: leave tf32 off"
        )
    before, products = uses_tf32(), cupy_tf32.products()
    products.set_compute_type(np.float32, products.COMPUTE_TYPE_TF32 if enabled else products.COMPUTE_TYPE_DEFAULT)
    return before


def uses_tf32() -> bool:
    """Whether float32 matrix products use TF32, because of `set_tf32` or of CuPy's own CUPY_TF32."""
    require()
    return cupy_tf32.in_use()


def describe() -> str:
    """One line: the versions of CuPy and CUDA, and the GPU."""
    cupy = require()
    capability = cupy_setup.decimal(int(cupy.cuda.Device().compute_capability))
    cuda = cupy_setup.cuda_version(cupy.cuda.runtime.runtimeGetVersion())
    return (
        f"CuPy {cupy.__version__} on {cupy_setup.gpu_name(cupy)} (compute capability {capability}, "
        f"{in_bytes(memory().total)}); CUDA {cuda}{'; TF32' if uses_tf32() else ''}"
    )
