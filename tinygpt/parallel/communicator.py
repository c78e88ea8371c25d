"""What processes that share a run can do together. `Communicator` itself is the implementation for a single process.

| operation | on each of N processes |
|---|---|
| `all_reduce(x)` | x becomes the sum of all x |
| `reduce_scatter(x)`, x (N * n,) | returns part `rank` of the sum, (n,) |
| `all_gather(x)`, x (n,) | returns all x one after the other, (N * n,) |
| `broadcast(x, root)` | x becomes that of process `root` |
| `barrier()` | waits until all processes have called it |
| `gather_values(v)`, `share_value(v)` | the same for small values (`values.py`): a list of all; that of process 0 |
| `share_arrays(d)` | returns the arrays of process 0, by name |
| `rooms([(n, x), ...])` | returns memory for arrays of n elements that are summed again and again (`Room`) |

Arrays are contiguous, and of the same size and dtype on all processes. All processes make the same calls in the same
order, as in MPI.

**The sum has a fixed order.** (a + b) + c and a + (b + c) differ in the last digit, and MPI promises no order of
additions. So on CPUs the parts are exchanged and then added in the order of the ranks: the sum has the same bits on
every process, in every run, and with every MPI library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ..backends import array_module
from ..errors import DtypeError
from ..typing import Array


class Pending:
    """A result in flight. `advance` moves it along if it can without waiting; `wait` returns it.

    An MPI library works on a message only while it is called, so code that computes meanwhile calls `advance`
    now and then.
    """

    def __init__(self, result: Array) -> None:
        self.result = result

    def advance(self) -> bool:
        """Whether the result is there."""
        return True

    def wait(self) -> Array:
        return self.result


class Room:
    """Memory for an array (n,) that is summed over the processes again and again, such as a bucket of gradients.

        room.array[...] = mine
        total = room.start().wait()

    `array` may be filled again when `wait` has returned. The sum is read-only if it lies in memory of all processes; it
    stays there until the next sum has begun on all of them. n is a multiple of their number.
    """

    def __init__(self, owner: Communicator, array: Array) -> None:
        self.owner, self.array = owner, array

    def start(self, scatter: bool = False) -> Pending:
        """Start the sum of all processes' `array`. scatter: the result is this process's part of it, (n / N,)."""
        return self.owner.start_reduce_scatter(self.array) if scatter else self.owner.start_all_reduce(self.array)

    @property
    def part(self) -> Array:
        """(n / N,): to be filled before `start_gather`, when the last sum is no longer needed."""
        if not hasattr(self, "_part"):
            self._part: Array = array_module(self.array).zeros(self.array.size // self.owner.size, self.array.dtype)
        return self._part

    def start_gather(self) -> Pending:
        """Start to gather all processes' `part`: the result is (n,), and stays until the next sum has begun."""
        return Pending(self.owner.all_gather(self.part))


class Communicator:
    """A single process: there are no others to talk to, and every sum is the array itself."""

    rank, size = 0, 1
    local_rank = 0  # among the processes of this machine
    kind = "one process"

    def start_all_reduce(self, array: Array) -> Pending:
        """`all_reduce` in the background: the result is `array`, which must not be touched before."""
        return Pending(array)

    def start_reduce_scatter(self, array: Array) -> Pending:
        """`reduce_scatter` in the background; `array` must not be touched before."""
        return Pending(array)

    def all_reduce(self, array: Array) -> None:
        """Replace `array` by the sum over all processes."""
        self.start_all_reduce(array).wait()

    def reduce_scatter(self, array: Array) -> Array:
        """array (size * n,) -> part `rank` of the sum over all processes, (n,)."""
        return self.start_reduce_scatter(array).wait()

    def all_gather(self, array: Array) -> Array:
        """array (n,) -> the arrays of all processes in the order of their ranks, (size * n,)."""
        return array

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace `array` by that of process `root`."""

    def rooms(self, sizes: Sequence[tuple[int, Array]]) -> list[Room]:
        """A room for each (n, array): n elements, zeros, of this array's dtype and backend."""
        return [Room(self, array_module(like).zeros(n, like.dtype)) for n, like in sizes]

    def barrier(self) -> None:
        """Wait until all processes have called it."""

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks: small and plain ones, which travel as JSON."""
        return [value]

    def share_value(self, value: Any) -> Any:
        """The value of process 0, which travels as JSON; those of the others are ignored."""
        return value

    def share_arrays(self, arrays: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """The arrays of process 0, by name, in the host's memory; the others give None. Raises DtypeError."""
        here = dict(arrays or {})
        if any(array.dtype.hasobject for array in here.values()):
            raise DtypeError("share_arrays: arrays of Python objects can't be sent: send numbers")
        if self.size == 1:
            return here
        found: dict[str, np.ndarray] = {}
        for name, shape, kind in self.share_value([[n, a.shape, a.dtype.str] for n, a in here.items()]):
            array = np.ascontiguousarray(here[name]) if self.rank == 0 else np.empty(shape, kind)
            self.broadcast(array.reshape(-1).view(np.uint8))
            found[name] = array.reshape(shape)
        return found

    def for_backend(self, backend: str) -> Communicator:
        """A communicator of the same processes for arrays of "numpy" or "cupy"."""
        return self

    def end_all(self, code: int) -> NoReturn:
        """End all processes of the run at once, with this exit code."""
        raise SystemExit(code)

    def __repr__(self) -> str:
        return f"<process {self.rank} of {self.size}: {self.kind}>"


def sum_in_order(parts: Array, out: Array | None = None) -> Array:
    """parts (N, n) -> parts[0] + parts[1] + ... (n,), added in this order into `out`, which may be parts[0]."""
    total = parts[0] if out is None else out
    if out is not None:
        total[...] = parts[0]
    for part in parts[1:]:
        total += part
    return total


def padded(count: int, size: int) -> int:
    """The smallest multiple of `size` that is at least `count`."""
    return -(-count // size) * size
