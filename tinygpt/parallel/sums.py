"""How MPI processes make a sum in the order of their ranks: `Sum` by messages, `SharedSum` in shared memory.

Both divide the array into N parts. Process j adds up part j of all arrays, and then all of them get all the sums.

- `Sum` works between any machines. Every process sends part j of its array to process j, and process j the sum to all
  others, the way fast networks do it (Rabenseifner's algorithm). Each process sends and receives 2 (N - 1) / N times
  the array's size, and adds 1 / N of it. The messages are plain sends and receives: MPI's own Ialltoall and Iallgather
  also copy the part that stays where it is.
- `SharedSum` is for one machine. The arrays lie in memory that all processes share (`shared.py`), so process j reads
  part j of each in place and writes the sum once, where all read it. Nothing is copied; the messages, of one byte,
  only say that an array is filled or that a part is added up. They also make sure that a process sees what another
  wrote before them, on every kind of processor.

An MPI library works on a message only while it is called, and while it waits it polls in a loop. With more processes
than cores, polling takes time from the very process that is waited for, so a process that waits here lets others run
between polls (`until`). Open MPI could do so itself (`mpi_yield_when_idle`), but at every poll, those of the backward
pass included: with other work on the machine each of them could cost a time slice.

Source: Rabenseifner, "Optimization of Collective Reduction Operations", 2004; Thakur, Rabenseifner, Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005, section 4.5.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..typing import Array
from .communicator import Pending, Room, padded

_TAGS = 32768  # MPI allows at least as many
_SOON, _NAP = 0.005, 0.0002  # seconds


class Messenger(Protocol):
    """What a sum needs from the communicator."""

    mpi: Any  # the module mpi4py.MPI
    comm: Any
    rank: int
    size: int
    sums: int  # that were started: tells their messages apart
    under_way: list[Any]


def until(is_there: Callable[[], bool]) -> None:
    """Poll until it is done. Python's signal handlers run meanwhile; inside a blocking MPI function they would not.
    Other processes on this core run too: after polling for a short time, this one sleeps between polls."""
    soon = time.perf_counter() + _SOON
    while not is_there():
        if time.perf_counter() > soon or not hasattr(os, "sched_yield"):
            time.sleep(_NAP)
        else:
            os.sched_yield()


class Exchanges(Pending):
    """Work in two exchanges with all other processes. `_between` follows the first; without `twice` it is the end."""

    def __init__(self, owner: Messenger, twice: bool) -> None:
        self.owner, self.twice = owner, twice
        self.others = [rank for rank in range(owner.size) if rank != owner.rank]
        self.tag = owner.sums % _TAGS
        self.halfway = self.done = False
        owner.sums += 1
        owner.under_way.append(self)

    def _exchange(self, into: dict[int, np.ndarray], out_of: dict[int, np.ndarray]) -> None:
        comm, tag = self.owner.comm, self.tag
        self.requests = [comm.Irecv(array, rank, tag) for rank, array in into.items()]
        self.requests += [comm.Isend(array, rank, tag) for rank, array in out_of.items()]

    def _between(self) -> None:
        """What this process does after the first exchange, and the second exchange if there is one."""
        raise NotImplementedError

    def _end(self) -> None:
        """What is left to do after all exchanges."""

    def advance(self) -> bool:
        while not self.done and self.owner.mpi.Request.Testall(self.requests):
            if not self.halfway:
                self.halfway = True
                self._between()
                if self.twice:
                    continue
            self.done = True
            self.owner.under_way.remove(self)
            self._end()
        return self.done

    def wait(self) -> Array:
        until(self._advance_all)
        return self.result

    def _advance_all(self) -> bool:
        for one in [*self.owner.under_way]:  # the others are waited for next
            one.advance()
        return self.done


class Sum(Exchanges):
    """The sum of `array`, by messages. gather: all processes get all of it, in `array`; otherwise each its part."""

    def __init__(self, owner: Messenger, array: np.ndarray, gather: bool) -> None:
        super().__init__(owner, twice=gather)
        self.array, N, flat = array, owner.size, array.reshape(-1)
        whole = padded(flat.size, N)
        if whole != flat.size:
            flat = np.concatenate([flat, np.zeros(whole - flat.size, flat.dtype)])
        self.parts = flat.reshape(N, -1)  # (N, n)
        self.received = {rank: np.empty(whole // N, flat.dtype) for rank in self.others}
        self._exchange(self.received, {rank: self.parts[rank] for rank in self.others})

    def _between(self) -> None:
        """Add up this process's part, in place if all processes get it."""
        mine = self.parts[self.owner.rank]
        arrays = [self.received.get(rank, mine) for rank in range(self.owner.size)]
        spare = arrays[1] if arrays[0] is mine else arrays[0]
        self.result = mine if self.twice else spare
        add_in_order(arrays, spare, self.result)
        self.received = {}
        if self.twice:
            self._exchange({rank: self.parts[rank] for rank in self.others}, dict.fromkeys(self.others, mine))

    def _end(self) -> None:
        if self.twice:
            if not np.shares_memory(self.parts, self.array):
                self.array[...] = self.parts.reshape(-1)[: self.array.size].reshape(self.array.shape)
            self.result = self.array


def add_in_order(arrays: list[np.ndarray], spare: np.ndarray, result: np.ndarray) -> None:
    """result = ((arrays[0] + arrays[1]) + arrays[2]) + ...; it may be one of them. spare: room for the running sum,
    whose contents are no longer needed."""
    first, second, *more = arrays
    total = np.add(first, second, out=spare if more else result)
    for array in more:
        np.add(total, array, out=result if array is more[-1] else spare)


class SharedRoom(Room):
    """A room in the memory of one machine. rows (N + 1, n * N), shared by its processes: the array of each, the sum."""

    def __init__(self, owner: Messenger, rows: np.ndarray) -> None:
        self.messenger, self.rows, self.array = owner, rows, rows[owner.rank]
        self.total = rows[-1].view()
        self.total.flags.writeable = False  # all processes see it
        n = self.array.size // owner.size
        self.mine = slice(owner.rank * n, owner.rank * n + n)

    def start(self, scatter: bool = False) -> Pending:
        return SharedSum(self.messenger, self, self.total[self.mine] if scatter else self.total)

    @property
    def part(self) -> np.ndarray:
        part: np.ndarray = self.rows[-1, self.mine]
        return part

    def start_gather(self) -> Pending:
        return SharedSum(self.messenger, self, self.total, adds=False)


class SharedSum(Exchanges):
    """The sum of a room in shared memory. Without `adds` the processes only tell each other that their part is ready.

    A process fills its array again only when this is done, after all others have read it. It writes its part of the
    next sum only when all have filled their arrays again, and so no longer need the last sum.
    """

    def __init__(self, owner: Messenger, room: SharedRoom, result: np.ndarray, adds: bool = True) -> None:
        super().__init__(owner, twice=adds)
        self.room, self.result = room, result
        self._tell()

    def _tell(self) -> None:
        self.words = {rank: np.zeros(1, np.uint8) for rank in self.others}
        self._exchange(self.words, dict.fromkeys(self.others, np.ones(1, np.uint8)))

    def _between(self) -> None:
        if self.twice:
            *arrays, total = [row[self.room.mine] for row in self.room.rows]
            add_in_order(arrays, total, total)
            self._tell()
