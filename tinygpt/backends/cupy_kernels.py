"""The CUDA kernels of `tinygpt._ext.cuda`, run by CuPy: NVRTC compiles them on first use, CuPy caches them on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from .._ext import cuda
from . import recording
from .cupy_matmul import gemm

MAX_TABLES = 16  # a training step has three: of what is rounded, of the gradients, and the optimizer's


class Device:
    """What the launchers in `tinygpt._ext.cuda` run on: implements `tinygpt._ext.cuda.Device`."""

    def __init__(self, cupy: Any) -> None:
        self.xp = cupy
        self.functions: dict[str, Any] = {}
        self.tables: dict[Hashable, Any] = {}
        self.rng_stream_base: tuple[int, Any] = (0, None)

    @functools.cached_property
    def has_tensor_cores(self) -> bool:
        return int(self.xp.cuda.Device().compute_capability) >= 80

    def empty(self, shape: Any, dtype: Any) -> Any:
        return self.xp.empty(shape, dtype)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def pointers(self, arrays: Sequence[Any]) -> list[int]:
        return [self.address(array) for array in arrays]

    def table(self, key: Hashable, made: Callable[[], np.ndarray]) -> Any:
        """See `tinygpt._ext.cuda.Device`. A graph that is being recorded keeps its own table."""
        if recording.recorder is not None:
            return recording.recorder.on_device(made(), None)
        found = self.tables.pop(key, None)
        self.tables[key] = self.xp.asarray(made()) if found is None else found  # moved to the end
        while len(self.tables) > MAX_TABLES:
            del self.tables[next(iter(self.tables))]
        return self.tables[key]

    def matmul(self, a: Any, b: Any) -> Any:
        if recording.recorder is None or a.dtype != np.float32:
            return self.xp.matmul(a, b)
        return gemm(self.xp, a, b, self.empty((len(a), b.shape[1]), a.dtype), add=False)

    def launch(
        self, file: str, kernel: str, real: str, grid: Sequence[int], block: Sequence[int], arguments: Any, shared: int
    ) -> None:
        function = self.functions.get(kernel)
        if function is None:
            function = self.functions[kernel] = self.compiled(file, kernel)
        values = [np.array(v) if isinstance(v, np.void) else v for v in cuda.kernel_arguments(arguments)]  # structs
        function(tuple(grid), tuple(block), tuple(values), shared_mem=shared)

    def compiled(self, file: str, kernel: str) -> Any:
        """A kernel compiled for this GPU. Each is compiled separately, since most programs use only a few."""
        module = self.xp.RawModule(code=cuda.source(file), options=OPTIONS, name_expressions=(kernel,))
        return module.get_function(kernel)


OPTIONS = ("--std=c++17",)


@functools.cache
def body(cupy: Any, kernel: str) -> Callable[..., Any] | None:
    """The CUDA body of a kernel, called like its reference; None if it has none."""
    return cuda.body(device(cupy), kernel)


@functools.cache
def device(cupy: Any) -> Device:
    return Device(cupy)
