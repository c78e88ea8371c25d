"""What the processes of a test do: python -m tests.parallel.work NAME [ARGUMENT ...], under mpirun.

Each function below is run by all of them. An assertion that fails ends them all.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import math
import os
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import capture
from tests.cuda.standin import installed
from tests.training.helpers import TRAIN, VALIDATION
from tinygpt import backends
from tinygpt.checkpoint import CheckpointFolder
from tinygpt.errors import DtypeError
from tinygpt.graph import no_grad
from tinygpt.parallel import Communicator, GradientBuckets, ShardedOptimizer, current, shared, use
from tinygpt.parallel.communicator import Room, sum_in_order
from tinygpt.parallel.mpi import Mpi
from tinygpt.parallel.sums import SharedRoom
from tinygpt.training import read_metrics
from tinygpt.training.monitoring.layer_norms import LayerWatch
from tinygpt.training.objective import Objective
from tinygpt.training.step.late_steps import LateSteps

WORK: dict[str, Callable[..., Any]] = {}


def work(function: Callable[..., Any]) -> Callable[..., Any]:
    WORK[function.__name__] = function
    return function


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def numbers_of(rank: int, count: int, dtype: Any = np.float32) -> np.ndarray:
    """Numbers of very different sizes, so that the order of additions shows in their sum."""
    rng = np.random.default_rng(rank)
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-4, 5, count)).astype(dtype)


@work
def collectives(team: Mpi) -> None:
    """Each operation against what NumPy makes of the numbers of all processes."""
    everyone = range(team.size)
    for dtype in (np.float32, np.float64, np.int64):
        for count in (1, 5, 24, 1000):
            mine = numbers_of(team.rank, count, dtype)
            expected = sum_in_order(np.stack([numbers_of(rank, count, dtype) for rank in everyone]))
            total = mine.copy()
            team.all_reduce(total)
            assert np.array_equal(total, expected), (dtype, count)
            gathered = team.all_gather(mine)
            assert np.array_equal(gathered, np.concatenate([numbers_of(rank, count, dtype) for rank in everyone]))
            for root in everyone:
                value = mine.copy()
                team.broadcast(value, root)
                assert np.array_equal(value, numbers_of(root, count, dtype))
            long = numbers_of(team.rank, count * team.size, dtype)
            parts = sum_in_order(np.stack([numbers_of(rank, count * team.size, dtype) for rank in everyone]))
            part = team.reduce_scatter(long)
            assert np.array_equal(part, parts.reshape(team.size, count)[team.rank])
    table = numbers_of(team.rank, 12).reshape(3, 4)
    team.all_reduce(table)
    assert np.array_equal(table.reshape(-1), sum_in_order(np.stack([numbers_of(rank, 12) for rank in everyone])))
    assert team.gather_values({"rank": team.rank}) == [{"rank": rank} for rank in everyone]
    assert team.share_value(f"from {team.rank}") == "from 0"
    values_of_processes(team)
    pending = [team.start_all_reduce(numbers_of(team.rank + 10 * i, 3000)) for i in range(4)]
    while sum(one.advance() for one in pending) < 4:
        pass
    for i, one in enumerate(pending):
        assert np.array_equal(one.wait(), sum_in_order(np.stack([numbers_of(r + 10 * i, 3000) for r in everyone])))
    sums_at_different_paces(team)
    sums_in_rooms(team)
    team.barrier()
    try:
        team.reduce_scatter(np.zeros(team.size + 1))
    except tg.UsageError as error:
        assert "not divisible" in str(error)  # noqa: PT017
    else:
        raise AssertionError("an array that can't be divided was accepted")


def sums_at_different_paces(team: Communicator) -> None:
    """Process 0 is in the second exchange of one sum before it starts another, the others start both at once."""
    begin = time.monotonic()
    pending = []
    for i in range(2):
        pending.append(team.start_all_reduce(numbers_of(team.rank + 10 * i, 60)))
        while team.rank == 0 and time.monotonic() < begin + 0.3:
            pending[0].advance()
    time.sleep(0.0 if team.rank == 0 else 0.6)
    for i, one in enumerate(pending):
        expected = sum_in_order(np.stack([numbers_of(rank + 10 * i, 60) for rank in range(team.size)]))
        assert np.array_equal(one.wait(), expected)


def sums_in_rooms(team: Mpi) -> None:
    """The same sums in shared memory and by messages, again and again, with processes at different paces."""
    everyone, N = range(team.size), team.size
    for shares in (True, False):
        team.shares_memory = shares
        likes = [np.zeros(0, dtype) for dtype in (np.float32, np.float64, np.float32)]
        rooms = team.rooms([(n * N, like) for n, like in zip((1, 1000, 4097), likes, strict=True)])
        assert all(isinstance(room, SharedRoom) == shares for room in rooms)
        for turn in range(6):
            scatter = turn % 3 == 2
            time.sleep(0.02 * ((team.rank + turn) % N))
            pending = []
            for room, like in zip(rooms, likes, strict=True):
                assert room.array.shape[0] % N == 0
                assert room.array.dtype == like.dtype
                assert turn or not room.array.any()
                room.array[...] = numbers_of(team.rank + 10 * turn, room.array.size, like.dtype)
                pending.append(room.start(scatter))
            for room, like, one in zip(rooms, likes, pending, strict=True):
                total, n = one.wait(), room.array.size
                parts = np.stack([numbers_of(rank + 10 * turn, n, like.dtype) for rank in everyone])
                expected = sum_in_order(parts.copy())
                mine = expected.reshape(N, -1)[team.rank]
                assert np.array_equal(total, mine if scatter else expected), (shares, turn, n)
                if shares:
                    assert not total.flags.writeable
                    assert np.array_equal(room.array, parts[team.rank])
                    assert np.shares_memory(total, room.rows[-1])
                if scatter:
                    room.part[...] = mine * 2
            if scatter:
                for room, one in zip(rooms, [room.start_gather() for room in rooms], strict=True):
                    doubled = [numbers_of(r + 10 * turn, room.array.size, room.array.dtype) for r in everyone]
                    assert np.array_equal(one.wait(), sum_in_order(np.stack(doubled)) * 2)
        assert not team.under_way
    team.shares_memory = True


@work
def shared_memory(team: Mpi) -> None:
    """What one writes the others read; it is gone with its last array; without it there are rooms of the plain kind."""
    memory = shared.shared_bytes(team, 1000)
    assert memory is not None
    assert not memory.any()
    team.barrier()
    memory[team.rank] = team.rank + 1
    team.barrier()
    assert memory[: team.size].tolist() == [*range(1, team.size + 1)]
    half = memory[500:]
    del memory
    assert mappings() == 1
    assert not list(Path("/dev/shm").glob("*tinygpt*"))
    del half
    assert mappings() == 0
    like = np.zeros(0, np.float32)
    assert len(team.rooms([])) == 0
    with pytest.MonkeyPatch.context() as patch:  # one process can't open the file
        if team.rank == team.size - 1:
            patch.setattr(shared, "opened", missing)
        assert shared.shared_bytes(team, 1000) is None
        assert all(type(room) is Room for room in team.rooms([(team.size, like)]))
    with pytest.MonkeyPatch.context() as patch:  # process 0 can't make it
        patch.delattr(os, "memfd_create")
        assert shared.shared_bytes(team, 1000) is None
    team.local_size -= 1  # on two machines
    assert all(type(room) is Room for room in team.rooms([(team.size, like)]))
    team.local_size += 1
    assert all(type(room) is SharedRoom for room in team.rooms([(team.size, like)]))
    assert mappings() == 0
    assert not [path for path in Path("/proc/self/fd").iterdir() if "tinygpt-" in target_of(path)]


@work
def huge_pages(team: Mpi) -> None:
    """Arrays too small for NumPy to ask for huge pages have them all the same, but for the first, which may begin
    before the first huge page."""
    _, small = (np.ones(3 << 20, np.uint8) for _ in range(2))
    flags, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, last = line.split(" ")[0].partition("-")
        if last:
            inside = int(first, 16) <= small.ctypes.data < int(last, 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()
    assert "hg" in flags, flags


def mappings() -> int:
    """How much of what this process shares is still there."""
    return Path("/proc/self/maps").read_text().count("memfd:tinygpt-")


def target_of(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # that of the folder, which is closed by now
        return ""


def missing(*_: str) -> int:
    raise FileNotFoundError


def values_of_processes(team: Communicator) -> None:
    """Plain values of any length arrive as they are; anything else is refused before a byte is sent."""
    for length in (0, 1, 499, 500, 501, 600, 100_000):  # below and above what fits into a single message
        mine = "ä" * length if team.rank % 2 else [*range(length)]
        assert team.gather_values(mine) == ["ä" * length if rank % 2 else [*range(length)] for rank in range(team.size)]
        assert team.share_value([*range(length)] if team.rank == 0 else {1}) == [*range(length)]
    found = team.gather_values((0.1 + team.rank, math.inf, None, {"a": [True]}))
    assert found == [[0.1 + rank, math.inf, None, {"a": [True]}] for rank in range(team.size)]
    for wrong in (np.arange(3), np.float32(1), b"a", {1}, {1: 2}, object(), [[np.int64(1)]]):
        with pytest.raises(DtypeError, match="a value for other processes"):
            team.gather_values(wrong)
    arrays = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.full((), 2.5), "c": np.zeros((0, 4), np.float32)}
    arrays |= {"d": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "e": np.array([True, False])}
    found = team.share_arrays(arrays if team.rank == 0 else None)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[name], array)


SHAPE = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2, "bias": True}
ROWS = 12  # divisible by 1, 2, 3 and 4 processes


def batch_of(step: int, ignored: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    inputs = rng.integers(0, 11, (ROWS, 8))
    targets = (3 * inputs + 1) % 11
    if ignored:  # most targets of the first rows, all of the first two, so that the processes have different counts
        targets[:2] = -100
        targets[2:5, 2:] = -100
    return inputs, targets


def gradients(team: Communicator, model: Any, buckets: GradientBuckets, step: int, ignored: bool) -> None:
    """The gradient of the mean loss over all targets of a batch that the processes share."""
    inputs, targets = batch_of(step, ignored)
    begin, end = (ROWS * rank // team.size for rank in (team.rank, team.rank + 1))
    model.generator.rows_before = begin
    mine, every = (targets[begin:end] != -100).sum(), (targets != -100).sum()
    with buckets.watching():
        if mine:
            model.loss(inputs[begin:end], targets[begin:end]).backward(np.float32(mine / every))
        else:
            model.generator.stream += model.streams_of_a_pass  # the masks that the others draw
    buckets.finish()


@work
def gradient_of_a_shared_batch(team: Communicator, ignored: str) -> None:
    """The gradient does not depend on how many processes share the batch, dropout and -100 included."""
    found = []
    for communicator in (team, Communicator()):
        model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=3).train()
        before = model.generator.stream
        model.loss(*batch_of(0, False))
        model.streams_of_a_pass = model.generator.stream - before
        buckets = GradientBuckets(model.parameters(), communicator, bucket_bytes=4000)
        for step in (0, 1):
            for parameter in model.parameters():
                parameter.grad = None
            gradients(communicator, model, buckets, step, bool(int(ignored)))
        found.append([parameter.grad.copy() for parameter in model.parameters()])
        if communicator is team:
            assert len(buckets.buckets) > 3
            early = buckets.early
    hashes = team.gather_values(digest(*found[0]))
    assert len(set(hashes)) == 1, "the processes have different gradients"
    largest = max(np.abs(gradient).max() for gradient in found[1])
    for ours, alone in zip(*found, strict=True):
        assert np.abs(ours - alone).max() <= 2e-6 * largest
    if not int(ignored):
        assert early >= len(buckets.buckets) - 1, "sums did not start during the backward pass"
    print(json.dumps({"hash": hashes[0]}) if team.rank == 0 else "", end="")


@work
def sharded_updates(team: Communicator, kind: str) -> None:
    """A sharded optimizer makes the updates of a whole one, and its state can be taken over by one."""
    make = {
        "adamw": lambda named: tg.optim.AdamW(named, lr=1e-2, weight_decay=0.1, l1=1e-4),
        "lion": lambda named: tg.optim.Lion(named, lr=1e-3),
        "sgd": lambda named: tg.optim.SGD(named, lr=0.1, momentum=0.9),
        "groups": lambda named: tg.optim.AdamW(tg.optim.layer_decay(named, 0.5), lr=1e-2),
    }[kind]
    models = [tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=3).train() for _ in range(2)]
    named = [list(model.named_parameters()) for model in models]
    buckets = [
        GradientBuckets(model.parameters(), team, 4000, scatter)
        for model, scatter in zip(models, (False, True), strict=True)
    ]
    whole, sharded = make(named[0]), ShardedOptimizer(make(named[1]), buckets[1])
    full = sum(array.nbytes for slot in whole.slots for array in slot.state.values())
    assert abs(sharded.state_bytes * team.size / full - 1) < 0.05, "the state is not shared out"
    norm = 0.0
    for step in range(3):
        for model, its_buckets, optimizer in zip(models, buckets, (whole, sharded), strict=True):
            inputs, targets = batch_of(step, False)
            begin, end = (ROWS * rank // team.size for rank in (team.rank, team.rank + 1))
            model.generator.rows_before = begin
            optimizer.zero_grad()
            with its_buckets.watching():
                model.loss(inputs[begin:end], targets[begin:end]).backward(np.float32(1 / team.size))
            if optimizer is sharded:
                sharded.finish()
                assert np.isclose(sharded.grad_norm(), norm, rtol=1e-6)
            else:
                its_buckets.finish()
                norm = tg.optim.grad_norm(model.parameters())
            optimizer.step(grad_scale=0.7)
    for (name, ours), (_, theirs) in zip(named[1], named[0], strict=True):
        assert np.allclose(ours.data, theirs.data, rtol=1e-5, atol=1e-6), name
    state, expected = sharded.state_dict(), whole.state_dict()
    assert state["step"] == expected["step"]
    assert {k: set(v) for k, v in state.items()} == {k: set(v) for k, v in expected.items()}
    for key in set(state) - {"step"}:
        for name, array in state[key].items():
            assert np.allclose(array, expected[key][name], rtol=1e-4, atol=1e-6), (key, name)
    whole.load_state_dict(state)
    sharded.load_state_dict(expected)
    again = sharded.state_dict()
    assert all(np.array_equal(again[key][name], expected[key][name]) for key in set(state) for name in state[key])


@work
def parameters_without_gradients(team: Communicator) -> None:
    """A parameter that no process used stays without a gradient; one that some used gets their sum."""
    a, b, c = (tg.tensor(np.ones(3, np.float32), requires_grad=True) for _ in range(3))
    buckets = GradientBuckets([a, b, c], team)
    for _ in range(2):
        for parameter in (a, b, c):
            parameter.grad = None
        with buckets.watching():
            loss = (a * (team.rank + 1.0)).sum()
            if team.rank == team.size - 1:
                loss = loss + (b * 2.0).sum() + (a * 1.0).sum()  # a is used twice here
            loss.backward()
        buckets.finish()
        assert np.array_equal(a.grad, np.full(3, sum(range(1, team.size + 1)) + 1.0, np.float32))
        assert np.array_equal(b.grad, np.full(3, 2.0, np.float32))
        assert c.grad is None
    with no_grad():
        assert buckets.absent == {2}


class Ignored:
    """Batches in which most targets of the first rows are ignored, and in each third batch all of the first half."""

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return batch_of(index, index % 3 == 0)


def require_norms_of_the_whole_gradient(records: list[dict[str, Any]]) -> None:
    """The squares of the layers' gradient norms add up to that of grad_norm, which is computed apart from them."""
    whole = {record["step"]: record["grad_norm"] for record in records if "grad_norm" in record}
    watched = {record["step"]: record["layers"] for record in records if "layers" in record}
    assert [*watched] == [step for step in whole if step % 10 == 0]
    for step, layers in watched.items():
        total = sum(row["gradient"] ** 2 for row in layers.values()) ** 0.5
        assert abs(total - whole[step]) < 1e-4 * whole[step], (step, total, whole[step])


def trained(
    team: Communicator, folder: Path, kind: str, steps: int, backend: str = "numpy", watched: bool = True
) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses of a run, and its weights. watched: with the norms of the layers, which need each step's gradients."""
    settings: dict[str, Any] = {
        "plain": {}, "accumulated": {"gradient_accumulation": 3}, "ignored": {"gradient_accumulation": 2},
        "sharded": {"shard_optimizer": True}, "adamw": {"optimizer": "adamw", "lr": 1e-3},
        "late": {"optimizer": "adamw", "lr": 1e-3, "log_every": 4},
        "frozen": {"freeze": "wte,h.0"}, "average": {"ema": 0.9, "optimizer": "adamw", "lr": 1e-3},
    }[kind]  # fmt: skip
    config = tg.TrainingConfig(**({
        "steps": steps, "batch_size": ROWS, "optimizer": "sgd", "lr": 0.1, "warmup_steps": 3, "eval_every": 50,
        "eval_batches": 5, "log_every": 1, "checkpoint_every": 100, "seed": 7,
    } | settings))  # fmt: skip
    model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=7).to(backend)
    objective = None
    if kind == "ignored":
        validation = [batch_of(1000 + index, index == 1) for index in range(5)]
        objective = Objective(Ignored(), validation, ROWS * 8, {"rows": "ignored"})
    texts = (None, None) if objective else (TRAIN, VALIDATION)
    stream = io.StringIO()
    trainer = tg.Trainer(model, *texts, config, folder, stream=stream, objective=objective)
    if watched:
        trainer.watch = LayerWatch(10)
    trainer.run()
    assert isinstance(trainer.steps, LateSteps) == (backend == "cupy" and kind == "late")
    assert bool(stream.getvalue()) == (team.rank == 0), "process 0 and only process 0 reports"
    records = team.share_value([*read_metrics(folder / "metrics.jsonl")] if team.rank == 0 else None)
    figures = [record for record in records if "layers" not in record]
    losses = [record.get("loss", record.get("validation_loss")) for record in figures]
    if team.rank == 0 and watched:
        require_norms_of_the_whole_gradient(records)
    return losses, {name: backends.move(array, "numpy").copy() for name, array in model.state_dict().items()}


@work
def the_run_of_one_process(team: Communicator, folder: str, kind: str, steps: str) -> None:
    """A run on all processes has the losses and weights of the run of one, up to rounding."""
    losses, weights = trained(team, Path(folder) / f"run-{team.size}", kind, int(steps))
    hashes = team.gather_values(digest(*weights.values()))
    assert len(set(hashes)) == 1, "the processes have different weights"
    if team.rank == 0:
        use(Communicator())
        expected, alone = trained(Communicator(), Path(folder) / "run-1", kind, int(steps))
        assert len(losses) == len(expected) == int(steps) + 1 + int(steps) // 50
        difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        apart = max(np.abs(weights[name] - alone[name]).max() for name in alone)
        assert difference > 0 or team.size == 1, "were these two runs?"
        assert losses[0] - min(losses) > 0.02, "the run learns nothing"  # thousands of times what is compared
        latest = [CheckpointFolder(Path(folder) / f"run-{n}").load("latest") for n in (team.size, 1)]
        assert [*latest[0].optimizer] == [*latest[1].optimizer]
        assert [*latest[0].state] == [*latest[1].state]
        for name, array in latest[1].optimizer.items():
            assert np.allclose(latest[0].optimizer[name], array, rtol=1e-2, atol=1e-4), name
        print(json.dumps({"hash": hashes[0], "losses": float(difference), "weights": float(apart)}))
    team.barrier()


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


def main() -> None:
    team = current()
    try:
        WORK[sys.argv[1]](team, *sys.argv[2:])
    except BaseException:
        traceback.print_exc()
        team.end_all(3)


if __name__ == "__main__":
    main()
