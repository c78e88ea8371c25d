"""NCCL through CuPy: arrays of several GPUs, each of another process, summed without a detour through the host.

    device = choose_gpu(rank_here, gather_values)             # this process's GPU, before anything is put on one
    channel = Channel(rank, size, share_value)
    pending = channel.all_reduce(array)                       # on a separate CUDA stream
    pending.wait()                                            # from here on, the current stream sees the sum

NCCL passes no small values between processes, and its communicator begins with an id that all of them must know. The
caller provides functions that do this (`tinygpt/parallel/gpu.py` has MPI's).

NCCL adds in its own order. For a fixed number and arrangement of GPUs it is the same in each run; with another number,
or on other machines, the last digits may differ.

Source: NVIDIA, "NCCL User Guide", "Collective Operations"; `cupy.cuda.nccl` in CuPy's reference.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from ..errors import MissingExtraError, UsageError

Gather = Callable[[Any], list[Any]]


def choose_gpu(cupy: Any, rank_here: int, gather: Gather) -> int:
    """Use the GPU of this process: number `rank_here` of those that it sees, wrapping around.

    rank_here: of this process among those of its machine. gather: collects a value of each process. Raises UsageError,
    on all processes, if two of them would use the same GPU.
    """
    device = rank_here % int(cupy.cuda.runtime.getDeviceCount())
    cupy.cuda.Device(device).use()
    found = gather((platform.node(), str(cupy.cuda.runtime.getDeviceProperties(device).get("uuid", device))))
    for rank, gpu in enumerate(found):
        if gpu in found[:rank]:
            raise UsageError(
                f"processes {found.index(gpu)} and {rank} have the same GPU on {gpu[0]}, which NCCL does not allow: "
                "start one process for each GPU"
            )
    return device


class Channel:
    """The GPUs of all processes of a run. Raises MissingExtraError if CuPy has no NCCL."""

    def __init__(self, cupy: Any, rank: int, size: int, share: Callable[[Any], Any]) -> None:
        self.cupy = cupy
        from cupy.cuda import nccl

        self.nccl = nccl
        if not getattr(nccl, "available", True):
            raise MissingExtraError(
                "several GPUs need NCCL, which this CuPy does not find: pip install nvidia-nccl-cu12 (or -cu13)",
                {"several GPUs": ["nvidia-nccl-cu12"]},
            )
        self.size = size
        identity = share(nccl.get_unique_id() if rank == 0 else None)  # a tuple of numbers, which arrives as a list
        self.comm = nccl.NcclCommunicator(size, tuple(identity), rank)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.types = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64, "int64": nccl.NCCL_INT64}

    def all_reduce(self, array: Any) -> OnItsWay:
        """array becomes the sum of all."""
        return self._launch(array, self.comm.allReduce, array, array, array.size, self.nccl.NCCL_SUM)

    def reduce_scatter(self, array: Any) -> OnItsWay:
        """array (size * n,) -> this process's part of the sum, (n,)."""
        part = self.cupy.empty(array.size // self.size, array.dtype)
        return self._launch(part, self.comm.reduceScatter, array, part, part.size, self.nccl.NCCL_SUM)

    def all_gather(self, array: Any) -> OnItsWay:
        """array (n,) -> all of them, (size * n,)."""
        whole = self.cupy.empty(array.size * self.size, array.dtype)
        return self._launch(whole, self.comm.allGather, array, whole, array.size)

    def broadcast(self, array: Any, root: int) -> OnItsWay:
        """array becomes that of process `root`."""
        return self._launch(array, self.comm.broadcast, array, array, array.size, root)

    def _launch(self, result: Any, operation: Any, source: Any, target: Any, count: int, *last: int) -> OnItsWay:
        """Launch on the channel's stream, once the current one has computed `source`."""
        kind = self.types[source.dtype.name]
        self.stream.wait_event(self.cupy.cuda.get_current_stream().record())
        operation(source.data.ptr, target.data.ptr, count, kind, *last, self.stream.ptr)
        return OnItsWay(self.cupy, result, (source, target), self.stream.record())


class OnItsWay:
    """A result that the channel's stream computes."""

    def __init__(self, cupy: Any, result: Any, held: Any, event: Any) -> None:
        self.cupy, self.result, self.event = cupy, result, event
        self.held = held  # the arrays that the stream uses must not be freed earlier

    def advance(self) -> bool:
        """Whether it is there. A GPU needs no calls to go on."""
        return bool(self.event.done)

    def wait(self) -> Any:
        """The result, for work on the current stream: the host does not wait."""
        self.cupy.cuda.get_current_stream().wait_event(self.event)
        return self.result
