"""CUDA graphs: record a sequence of kernel launches once, then launch all of it at the cost of one launch.

    recorder = Recorder()
    recorder.fill((idx, targets))                     # copies host arrays to buffers on the GPU, reused from now on
    with recorder.warm_up(): work()                   # runs as usual, but on the recorder's CUDA stream and memory pool
    graph = recorder.capture(work, first_rng_stream)  # computes nothing: only records the launches
    graph.replay((idx, targets), first_rng_stream)    # runs them with new values in the same buffers

A replay repeats the launches with exactly the arguments that were captured, both addresses and numbers. Therefore

- **memory** comes from the recorder's own pool, in warm-up and capture. Memory freed during a capture is reused later
  in that capture, and a replay repeats this in the same order. Nobody else allocates from the pool, and it frees
  nothing as long as the graph may be replayed. CuPy's pool does free memory when the GPU runs out of it, so if that
  happens during a capture, the capture is abandoned;
- **inputs** are copied to their buffers before each replay. Any other array from the host is a constant of the graph:
  it is copied once, on another CUDA stream, to memory that no launch of the graph writes to;
- **RNG streams** are numbered from an offset in device memory (`stream_of` in philox.cuh);
- **matrix products** call cuBLAS through ctypes, with a handle and a workspace that belong to the recorder. CuPy
  refuses to call cuBLAS during a capture, because its workspace might be freed too early; ours lives long enough;
- **no waiting** for the GPU and no reading of results: CuPy and CUDA refuse both during a capture. A number that Python
  computes from results, or that changes from step to step, would be frozen into the graph. Only a comparison can show
  that (`tinygpt.training.step.graphed_step` compares a replay with the real step, bit for bit, before trusting it).

Source: NVIDIA, "CUDA C++ Programming Guide", CUDA Graphs, "Creating a graph using stream capture"; cuBLAS's manual,
section "CUDA Graphs Support".
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import cupy as backend
from . import recording
from .cupy_kernels import device
from .cupy_matmul import loaded_library

MODES = ("auto", "on", "off")  # if they work; always, or raise an error; never
WORKSPACE = 32 << 20  # bytes, as cuBLAS's manual advises for the newest GPUs


class CaptureError(Exception):
    """Why this work can't be a CUDA graph. The message is a clause that ends another message."""


class Cublas:
    """The one cuBLAS function that graphs need, with the name and arguments of CuPy's own wrapper."""

    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT = 68, 77, -1

    def __init__(self, cupy: Any, cuda_stream: Any) -> None:
        self.cublas = load_cublas(cupy)
        handle = ctypes.c_void_p()
        self.call("cublasCreate_v2", ctypes.byref(handle))
        self.handle = handle.value
        self.workspace = cupy.empty(WORKSPACE, "uint8")
        self.call("cublasSetStream_v2", ctypes.c_void_p(self.handle), ctypes.c_void_p(cuda_stream.ptr))
        self.call(  # after cublasSetStream, which resets the workspace
            "cublasSetWorkspace_v2", ctypes.c_void_p(self.handle), ctypes.c_void_p(self.workspace.data.ptr),
            ctypes.c_size_t(WORKSPACE),
        )  # fmt: skip

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.cublas, name)(*arguments)
        if status != 0:
            raise CaptureError(f"cuBLAS's {name} returned status {status}")

    def gemmEx(self, handle: int, *arguments: Any) -> None:
        """(transa, transb, m, n, k, alpha, A, type, lda, B, type, ldb, beta, C, type, ldc, compute type, algorithm)."""
        self.call(
            "cublasGemmEx", ctypes.c_void_p(handle),
            *(kind(value) for kind, value in zip(GEMM_ARGUMENTS, arguments, strict=True)),
        )  # fmt: skip


_int, _address = ctypes.c_int, ctypes.c_void_p
GEMM_ARGUMENTS = (
    _int, _int, _int, _int, _int, _address, _address, _int, _int, _address, _int, _int, _address, _address, _int, _int,
    _int, _int,
)  # fmt: skip


def load_cublas(cupy: Any) -> Any:
    """The cuBLAS library that CuPy has loaded."""
    if sys.platform != "linux":
        raise CaptureError("CUDA graphs are supported only on Linux")
    try:
        return loaded_library(cupy, "cublas")
    except OSError as error:
        raise CaptureError(f"the cuBLAS library can't be found ({error})") from error


class Graph:
    """Recorded launches, and everything that must stay alive at the same address while they may be replayed."""

    def __init__(self, recorder: Recorder, launches: Any, first_rng_stream: int) -> None:
        self.recorder, self.launches, self.constants = recorder, launches, recorder.constants
        self.first_rng_stream = first_rng_stream

    def replay(self, inputs: Sequence[np.ndarray], first_rng_stream: int) -> None:
        """Launch it on CuPy's current CUDA stream, with these inputs, and RNG streams from `first_rng_stream` on."""
        self.recorder.fill(inputs)
        self.recorder.count_rng_streams_from(first_rng_stream)
        self.launches.launch()


class Upload:
    """Copies host arrays to one place on the GPU while earlier work still runs, from two page-locked arrays in turn."""

    def __init__(self, place: Any) -> None:
        self.place, self.turn = place, 0
        self.hosts = [backend.pinned(place.shape, place.dtype) for _ in range(2)]
        self.copied: list[Any] = [None, None]  # events

    def __call__(self, array: np.ndarray, cuda_stream: Any) -> None:
        self.turn = 1 - self.turn
        if self.copied[self.turn] is not None:  # two copies ago: it is long done
            self.copied[self.turn].synchronize()
        self.hosts[self.turn][...] = array
        self.place.set(self.hosts[self.turn], cuda_stream)
        self.copied[self.turn] = cuda_stream.record()


class Recorder:
    """A CUDA stream, memory and input buffers for graphs that are replayed one at a time, never concurrently."""

    def __init__(self) -> None:
        cupy = self.cupy = backend.require()
        self.cuda_stream = cupy.cuda.Stream(non_blocking=True)  # the default stream can't be captured
        self.upload_stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool(self._malloc)
        self.rng_stream_base = cupy.zeros(1, "uint64")  # the offset of the RNG streams
        self.rng_stream_uploaded, self.upload_rng_stream = 0, Upload(self.rng_stream_base)
        self.cublas = Cublas(cupy, self.cuda_stream)
        self.hosts: list[np.ndarray] = []  # the current inputs
        self.places: list[Any] = []  # their buffers on the GPU
        self.uploads: dict[Any, list[Upload]] = {}  # into the buffers for each combination of shapes and dtypes
        self.constants: list[Any] = []
        self.capturing = False
        cupy.get_default_memory_pool().free_all_blocks()  # the arrays will now come from this recorder's pool instead

    def _malloc(self, size: int) -> Any:
        """Allocate for the pool. A failure ends a capture: otherwise the pool would free what launches still use."""
        cuda = self.cupy.cuda
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except Exception as error:
            if self.capturing:
                raise CaptureError("the GPU does not have enough memory for one") from error
            raise

    def has_room(self, times: float) -> bool:
        """Whether the GPU has `times` as much free memory as this recorder's arrays have taken so far."""
        return bool(backend.memory().free >= times * self.pool.total_bytes())

    # Inputs and constants -------------------------------------------------------------------------

    def fill(self, inputs: Sequence[np.ndarray]) -> None:
        """Copy host arrays to their buffers on the GPU, which earlier inputs of the same shapes and dtypes used too."""
        kind = tuple((array.shape, array.dtype) for array in inputs)
        if kind not in self.uploads:
            self.uploads[kind] = [Upload(self.cupy.empty(shape, dtype)) for shape, dtype in kind]
        self.hosts, self.places = list(inputs), [upload.place for upload in self.uploads[kind]]
        for upload, array in zip(self.uploads[kind], inputs, strict=True):
            upload(array, self.cupy.cuda.get_current_stream())

    def count_rng_streams_from(self, first: int) -> None:
        """Let launches that are replayed count their RNG streams from `first`."""
        if first != self.rng_stream_uploaded:
            self.upload_rng_stream(np.array([first], np.uint64), self.cupy.cuda.get_current_stream())
            self.rng_stream_uploaded = first

    def on_device(self, array: np.ndarray, dtype: Any) -> Any:
        """The array on the GPU: an input's buffer, or a constant."""
        for host, place in zip(self.hosts, self.places, strict=True):
            if dtype is None and same_memory(array, host):
                return place.reshape(array.shape)
        if not self.capturing or array.ndim == 0:  # a single number becomes an argument of the launch that writes it
            return self.cupy.asarray(array, dtype=dtype)
        with self.cupy.cuda.using_allocator(self.cupy.get_default_memory_pool().malloc), self.upload_stream:
            constant = self.cupy.array(array, dtype=dtype)
        self.upload_stream.synchronize()
        self.constants.append(constant)
        return constant

    # Recording ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _own_cuda_stream_and_memory(self) -> Iterator[None]:
        previous, recording.recorder = recording.recorder, self
        try:
            with self.cuda_stream, self.cupy.cuda.using_allocator(self.pool.malloc):
                yield
        finally:
            recording.recorder = previous

    @contextlib.contextmanager
    def warm_up(self) -> Iterator[None]:
        """Work in the block runs as usual, but on the stream and memory of a capture: it compiles the kernels and fills
        the pool."""
        current = self.cupy.cuda.get_current_stream()
        self.cuda_stream.wait_event(current.record())
        try:
            with self._own_cuda_stream_and_memory():
                yield
        finally:
            current.wait_event(self.cuda_stream.record())

    def capture(self, work: Callable[[], Any], first_rng_stream: int) -> Graph:
        """Record the launches of `work()` without running them. first_rng_stream: the number of its first RNG stream.

        Raises CaptureError if `work` does something that a graph can't contain.
        """
        kernels, self.constants = device(self.cupy), []
        failure: BaseException | None = None
        with self._own_cuda_stream_and_memory():
            kernels.rng_stream_base = (first_rng_stream, self.rng_stream_base)
            self.capturing = True
            self.cuda_stream.begin_capture()
            try:
                work()
            except BaseException as error:
                failure = error
            finally:
                kernels.rng_stream_base = (0, None)
                self.capturing = False
                launches = self._end_capture(failure)
        return Graph(self, launches, first_rng_stream)

    def _end_capture(self, failure: BaseException | None) -> Any:
        """The recorded launches. In any case, the CUDA stream is no longer capturing."""
        try:
            launches = self.cuda_stream.end_capture()
        except Exception as error:
            failure = failure if failure is not None else error
        if failure is None:
            return launches
        if isinstance(failure, CaptureError) or not isinstance(failure, Exception):  # such as KeyboardInterrupt
            raise failure
        raise CaptureError(f"the work can't be recorded ({type(failure).__name__}: {first_line(failure)})") from failure


def same_memory(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays share all their elements in the same order, possibly with different shapes."""
    return (
        array.dtype == other.dtype
        and array.nbytes == other.nbytes
        and array.ctypes.data == other.ctypes.data
        and array.flags.c_contiguous
        and other.flags.c_contiguous
    )


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
