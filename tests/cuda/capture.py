"""The stand-in's streams: what a stream that is captured writes down instead of doing it, and what it refuses.

As in CUDA and CuPy (14)

- nothing is computed while the current stream is captured: every launch is written down with its very arrays and
  numbers, and the graph repeats them. Results hold NaN (whole numbers 0) until then;
- whatever would wait for the GPU is refused: numbers and copies for the host, shapes that depend on values;
- so are copies from the host, which CUDA would repeat from memory that CuPy has given to somebody else by then, and
  CuPy's matrix products ("calling cuBLAS API during stream capture is currently unsupported");
- every new array asks the allocator in use for memory.

What it cannot show: that CUDA accepts the capture; what the driver makes of it; that memory that was freed and taken
again during a capture is not used twice (here each array keeps its own); order between streams; what cuBLAS computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.cuda import cublas_standin


class Event:
    """`cupy.cuda.Event`: here all work is done when it is launched."""

    def synchronize(self) -> None:
        not_while_capturing()


class Stream:
    """`cupy.cuda.Stream`: the tape is there while it is captured."""

    count = 0

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        Stream.count += 1
        self.ptr, self.usual = Stream.count, not non_blocking
        self.tape: list[Callable[[], None]] | None = None

    def __enter__(self) -> Stream:
        stack.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert stack.pop() is self

    def begin_capture(self, mode: Any = None) -> None:
        if self.usual:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        assert self.tape is None
        self.tape = []

    def end_capture(self) -> Launches:
        assert self.tape is not None
        tape, self.tape = self.tape, None
        return Launches(tape)

    def synchronize(self) -> None:
        if self.tape is not None:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    def record(self, event: Any = None) -> Event:
        return Event()

    def wait_event(self, event: Any) -> None:
        assert isinstance(event, Event)


class Launches:
    """`cupy.cuda.Graph`."""

    def __init__(self, tape: list[Callable[[], None]]) -> None:
        self.tape, self.launched = tape, 0

    def launch(self, stream: Any = None) -> None:
        assert current() is None
        self.launched += 1
        with np.errstate(all="ignore"):
            for again in self.tape:
                again()


stack = [Stream()]
allocators: list[Callable[[int], Any]] = []


def current() -> list[Callable[[], None]] | None:
    """The tape of the current stream, if that is captured."""
    return stack[-1].tape


def not_while_capturing(what: str = "the current stream is capturing, so synchronous API calls are disallowed") -> None:
    if current() is not None:
        raise RuntimeError(what)


def poison(array: np.ndarray) -> None:
    array.fill(np.nan if array.dtype.kind == "f" else 0)


def held_arrays(values: Any) -> Iterator[np.ndarray]:
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from held_arrays(value)


@contextlib.contextmanager
def unchanged(arrays: list[np.ndarray]) -> Iterator[None]:
    """Afterwards they hold what they held."""
    before = [array.copy() for array in arrays]
    with np.errstate(all="ignore"):
        yield
    for array, values in zip(arrays, before, strict=True):
        np.copyto(array, values)


def launched(compute: Callable[[], Any], *arguments: Any, writes: bool = False) -> Any:
    """`compute()`; or, on a stream that is captured, arrays for its results, and a line on the tape.

    arguments: the NumPy arrays that it reads; what shares memory with one of them is a view of it, not a result.
    writes: it may change them, too.
    """
    tape, given = current(), list(held_arrays(arguments))
    with unchanged(given if writes else []) if tape is not None else contextlib.nullcontext():
        result = compute()  # in a capture for the shapes alone
    several = isinstance(result, tuple)
    results = [np.asarray(r) if isinstance(r, np.generic) else r for r in (result if several else (result,))]
    new = {
        i: r
        for i, r in enumerate(results)
        if isinstance(r, np.ndarray) and not any(np.may_share_memory(r, array) for array in given)
    }
    for array in new.values():
        if allocators:
            allocators[-1](array.nbytes)
    if tape is not None and (new or writes):

        def again() -> None:
            made = compute()
            for i, place in new.items():
                np.copyto(place, made[i] if several else made)

        tape.append(again)
        for array in new.values():
            poison(array)
    return tuple(results) if several else results[0]


def written(change: Callable[[], Any]) -> None:
    """Change an array in place: now, or when the tape is played."""
    tape = current()
    if tape is None:
        change()
    else:
        tape.append(change)


def add_to(cuda: Any) -> None:
    """`cupy.cuda`'s part of it."""
    cuda.Stream, cuda.alloc_pinned_memory = Stream, bytearray
    cuda.Memory = lambda size: types.SimpleNamespace(size=size)
    cuda.MemoryPointer = lambda memory, offset: memory
    cuda.MemoryPool = lambda allocator: types.SimpleNamespace(malloc=allocator, total_bytes=lambda: 2 << 20)
    cuda.get_current_stream = lambda: stack[-1]

    @contextlib.contextmanager
    def using_allocator(allocator: Any = None) -> Iterator[None]:
        allocators.append(allocator)
        try:
            yield
        finally:
            allocators.pop()

    cuda.using_allocator = using_allocator


# cuBLAS -------------------------------------------------------------------------------------------


class Cublas:
    """A library that computes as cuBLAS's manual says, on addresses: matrices column by column."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def cublasCreate_v2(self, handle: Any) -> int:
        handle._obj.value = 77
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        self.stream, self.workspace = stream.value, None
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, address: Any, size: Any) -> int:
        self.workspace = (address.value, size.value)
        return 0

    def cublasGemmEx(self, handle: Any, *arguments: Any) -> int:
        given = dict(zip(cublas_standin.GEMM_EX, (handle.value, *(a.value for a in arguments)), strict=True))
        assert given["handle"] == 77
        assert given["computeType"] in (68, 77)  # float32; TF32
        assert self.stream == stack[-1].ptr
        assert self.workspace
        self.calls.append((given["m"], given["n"], given["k"]))
        factors = [ctypes.c_float.from_buffer_copy(ctypes.string_at(given[name], 4)) for name in ("alpha", "beta")]
        given["alpha"], given["beta"] = (ctypes.addressof(factor) for factor in factors)  # read now, as cuBLAS does
        written(lambda kept=factors: cublas_standin.multiply(given))
        return 0
