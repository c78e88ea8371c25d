"""The NCCL backend: processes with a GPU each. Arrays go from GPU to GPU, small values through MPI.

NCCL adds in its own order: the same GPUs give the same bits in every run, but not the bits of a sum on CPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from .. import backends
from ..backends import name_of
from ..errors import UsageError
from ..typing import Array
from .communicator import Communicator, Pending

if TYPE_CHECKING:
    from .mpi import Mpi


class OnGpus(Communicator):
    """The processes of `mpi`. An array in the host's memory is given to MPI."""

    kind = "NCCL"

    def __init__(self, mpi: Mpi) -> None:
        self.mpi, self.rank, self.size = mpi, mpi.rank, mpi.size
        self.channel: Any = backends.get("cupy").channel(mpi.rank, mpi.size, mpi.share_value)

    def start_all_reduce(self, array: Array) -> Pending:
        if name_of(array) == "numpy":
            return self.mpi.start_all_reduce(array)
        return self.channel.all_reduce(array)

    def start_reduce_scatter(self, array: Array) -> Pending:
        if name_of(array) == "numpy":
            return self.mpi.start_reduce_scatter(array)
        if array.size % self.size:
            raise UsageError(f"reduce_scatter: {array.size} elements are not divisible by {self.size} processes")
        return self.channel.reduce_scatter(array)

    def all_gather(self, array: Array) -> Array:
        return self.mpi.all_gather(array) if name_of(array) == "numpy" else self.channel.all_gather(array).wait()

    def broadcast(self, array: Array, root: int = 0) -> None:
        if name_of(array) == "numpy":
            self.mpi.broadcast(array, root)
        else:
            self.channel.broadcast(array, root).wait()

    def barrier(self) -> None:
        self.mpi.barrier()

    def gather_values(self, value: Any) -> list[Any]:
        return self.mpi.gather_values(value)

    def share_value(self, value: Any) -> Any:
        return self.mpi.share_value(value)

    def end_all(self, code: int) -> NoReturn:
        self.mpi.end_all(code)
