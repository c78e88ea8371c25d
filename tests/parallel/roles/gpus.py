"""The body on NCCL, over the stand-in of CuPy."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import capture
from tests.cuda.standin import installed
from tests.parallel.roles import digest, numbers_of, work
from tests.parallel.roles.runs import trained
from tinygpt import backends
from tinygpt.parallel.communicator import sum_in_order
from tinygpt.parallel.mpi import Mpi


@work
def gpus(team: Mpi, folder: str) -> None:
    """The body on NCCL, over the stand-in of CuPy: what is launched, on which stream, after what; and a whole run."""
    with installed() as cupy, pytest.MonkeyPatch.context() as patch:
        cupy.cuda.nccl = nccl_standin(team.mpi.COMM_WORLD)
        cupy.cuda.Device = lambda *_: types.SimpleNamespace(
            id=0, compute_capability="90", synchronize=lambda: None, use=lambda: None
        )
        patch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
        patch.setattr(capture.Event, "done", True, raising=False)
        same = pytest.raises(
            tg.UsageError, match=r"processes 0 and 1 have the same GPU on .*, which NCCL does not allow"
        )
        with same if team.size > 1 else contextlib.nullcontext():
            backends.get("cupy").choose_gpu(team.local_rank, team.gather_values)
        together = team.for_backend("cupy")
        assert together is team.for_backend("cupy")
        assert team.for_backend("numpy") is team
        everyone = range(team.size)
        for dtype in (np.float32, np.float64):
            mine = numbers_of(team.rank, 24, dtype)
            expected = sum_in_order(np.stack([numbers_of(rank, 24, dtype) for rank in everyone]))
            total = cupy.asarray(mine)
            together.all_reduce(total)
            assert np.array_equal(total.get(), expected)
            whole = together.all_gather(cupy.asarray(mine)).get()
            assert np.array_equal(whole, np.concatenate([numbers_of(rank, 24, dtype) for rank in everyone]))
            part = together.reduce_scatter(cupy.asarray(mine)).get()
            assert np.array_equal(part, expected.reshape(team.size, -1)[team.rank])
            value = cupy.asarray(mine)
            together.broadcast(value, team.size - 1)
            assert np.array_equal(value.get(), numbers_of(team.size - 1, 24, dtype))
            here = mine.copy()
            together.all_reduce(here)  # an array in the host's memory goes through MPI
            assert np.array_equal(here, expected)
        assert together.gather_values(team.rank) == list(everyone)
        on_gpus = {}
        for kind in ("plain", "sharded", "late"):
            run = team, Path(folder) / f"gpus-{kind}", kind, 20, "cupy", kind != "late"
            on_gpus[kind], weights = trained(*run)
            assert len(set(team.gather_values(digest(*weights.values())))) == 1
    for kind, found in on_gpus.items():
        losses, _ = trained(team, Path(folder) / f"cpus-{kind}", kind, 20, watched=kind != "late")
        assert max(abs(a - b) for a, b in zip(losses, found, strict=True)) < 2e-6, kind


def nccl_standin(comm: Any) -> Any:
    """`cupy.cuda.nccl`, which finds the arrays by their addresses and sums them through MPI."""
    kinds = {7: ctypes.c_float, 8: ctypes.c_double, 4: ctypes.c_int64}

    def at(address: int, count: int, kind: int) -> np.ndarray:
        return np.ctypeslib.as_array((kinds[kind] * count).from_address(address))

    class NcclCommunicator:
        def __init__(self, size: int, identity: Any, rank: int) -> None:
            assert (size, rank) == (comm.size, comm.rank)
            assert identity == (1, 2, 3)  # that of process 0, on all of them

        def _all(self, address: int, count: int, kind: int) -> np.ndarray:
            return np.stack(comm.allgather(at(address, count, kind).copy()))

        def allReduce(self, source: int, target: int, count: int, kind: int, op: int, stream: int) -> None:
            assert (op, stream > 0) == (0, True)
            at(target, count, kind)[:] = sum_in_order(self._all(source, count, kind))

        def reduceScatter(self, source: int, target: int, count: int, kind: int, op: int, stream: int) -> None:
            total = sum_in_order(self._all(source, count * comm.size, kind))
            at(target, count, kind)[:] = total.reshape(comm.size, count)[comm.rank]

        def allGather(self, source: int, target: int, count: int, kind: int, stream: int) -> None:
            at(target, count * comm.size, kind)[:] = self._all(source, count, kind).reshape(-1)

        def broadcast(self, source: int, target: int, count: int, kind: int, root: int, stream: int) -> None:
            at(target, count, kind)[:] = self._all(source, count, kind)[root]

    return types.SimpleNamespace(
        NcclCommunicator=NcclCommunicator, get_unique_id=lambda: (1, 2, 3) if comm.rank == 0 else None, available=True,
        NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_INT64=4, NCCL_SUM=0,
    )  # fmt: skip
