"""What the contenders of `processes.py` do, each in processes of its own: python processes_work.py WORK PRESET ..."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import tinygpt as tg
from tinygpt.parallel import GradientBuckets, current

SIZES = [2**n for n in range(8, 23, 2)]  # float32 elements of the sums that are timed
PARTS = ("forward and backward", "buckets meanwhile", "waiting for the sums", "agreeing", "norm", "update")


class Timed(GradientBuckets):
    """Buckets that know how long they kept the backward pass from computing."""

    inside = 0.0

    def _ready(self, leaf: Any) -> None:
        begin = time.perf_counter()
        super()._ready(leaf)
        self.inside += time.perf_counter() - begin


class Step:
    """A training step of this process, and the seconds of its PARTS."""

    def __init__(self, preset: str, rows: int, overlapped: bool) -> None:
        from train_step import PRESETS

        self.team, self.overlapped = current(), overlapped
        config, _, T, _ = PRESETS[preset]
        with tg.nn.uninitialized():  # quick numbers: their distribution is all that matters
            self.model = tg.GPT(config).train()
        self.parameters = list(self.model.parameters())
        for parameter in self.parameters:
            if parameter.ndim == 2:
                parameter.data[...] = np.random.default_rng(1).standard_normal(parameter.shape, np.float32) * 0.02
        self.optimizer = tg.optim.AdamW(self.parameters, lr=1e-4)
        ids = tg.Generator(7 + self.team.rank).integers(config.vocab_size, (rows, T + 1))
        self.inputs, self.targets = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
        self.model.generator.rows_before = self.team.rank * rows
        self.buckets = Timed(self.parameters, self.team) if self.team.size > 1 else None
        self.parts: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.parts.setdefault(name, []).append(time.perf_counter() - begin)

    def take(self) -> float:
        """Take a step; return its seconds."""
        team, buckets = self.team, self.buckets
        team.barrier()
        begin, processor = time.perf_counter(), time.process_time()
        with self.part("forward and backward"):
            loss = self.model.loss(self.inputs, self.targets)
            if buckets is None or not self.overlapped:
                loss.backward()
            else:
                buckets.inside = 0.0
                with buckets.watching():
                    loss.backward()
        idle = 0.0
        if buckets is not None:
            if self.overlapped:
                self.parts["forward and backward"][-1] -= buckets.inside
                self.parts.setdefault("buckets meanwhile", []).append(buckets.inside)
            else:  # the others may still compute, which is not the sums' time
                idle = time.perf_counter()
                team.barrier()
                idle = time.perf_counter() - idle
            with self.part("waiting for the sums"):
                buckets.finish()
        with self.part("agreeing"):
            team.gather_values([float(loss.item()), None, ""])
        with self.part("norm"):
            norm = tg.optim.grad_norm(self.parameters) / team.size
        with self.part("update"):
            self.optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0) / team.size)
            self.optimizer.zero_grad()
        self.parts.setdefault("processor", []).append(time.process_time() - processor)
        return time.perf_counter() - begin - idle


def ours(preset: str, rows: int, steps: int, processes: int) -> dict[str, Any]:
    """Times of this process's steps on `rows` rows."""
    step = Step(preset, rows, overlapped=True)
    step.take()  # a warm-up, and the order of the buckets
    step.parts.clear()
    found: dict[str, Any] = {"overlapped": [step.take() for _ in range(steps)], "parts": step.parts}
    return found | {"parameters": sum(p.size for p in step.parameters), "tokens": rows * step.inputs.shape[1]}


def network(preset: str, rows: int, steps: int, processes: int) -> dict[str, Any]:
    """Seconds of a sum over all processes, for each size; and steps whose sums all begin after the backward pass."""
    team = current()
    times, processor = [], []
    for size in SIZES:
        array, seen, spent = np.zeros(size, np.float32), [], []
        for _ in range(3 + 3 * steps):
            team.barrier()
            begin, on_cpu = time.perf_counter(), time.process_time()
            team.all_reduce(array)
            seen.append(time.perf_counter() - begin)
            spent.append(time.process_time() - on_cpu)
        times.append(statistics.median(seen[3:]))
        processor.append(min(spent[3:]))
    step = Step(preset, rows, overlapped=False)
    step.take()
    step.parts.clear()
    afterwards = [step.take() for _ in range(steps)]
    assert step.buckets is not None
    facts = {"buckets": len(step.buckets.buckets), "processor": processor[-1] / SIZES[-1]}
    return {"times": times, "afterwards": afterwards, "sums": step.parts["waiting for the sums"]} | facts


def torch_ddp(preset: str, rows: int, steps: int, processes: int) -> dict[str, Any]:
    """The same steps in PyTorch, with DistributedDataParallel over gloo if there are several processes."""
    import torch
    from peer_torch import TorchGPT
    from torch.nn.parallel import DistributedDataParallel
    from train_step import PRESETS

    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
    torch.set_num_threads(int(os.environ["TINYGPT_NUM_THREADS"]))
    torch.manual_seed(0)
    config, _, T, _ = PRESETS[preset]
    model: Any = TorchGPT(config)
    parameters = list(model.parameters())
    if processes > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=processes)
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.randint(config.vocab_size, (rows, T + 1))
    times = []
    for step in range(steps + 1):
        if processes > 1:
            torch.distributed.barrier()
        begin = time.perf_counter()
        loss = model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        if step:
            times.append(time.perf_counter() - begin)
    if processes > 1:
        torch.distributed.destroy_process_group()
    return {"overlapped": times}


def memory(preset: str, rows: int, steps: int, processes: int) -> dict[str, Any]:
    """The bytes of AdamW's state on each process, whole and sharded."""
    from tinygpt.parallel import ShardedOptimizer

    step = Step(preset, 1, overlapped=True)
    whole = 2 * sum(parameter.data.nbytes for parameter in step.parameters)
    sharded = ShardedOptimizer(step.optimizer, GradientBuckets(step.parameters, step.team, scatter=True))
    return {"whole": whole, "sharded": step.team.gather_values(sharded.state_bytes)}


WORK = {"ours": ours, "network": network, "torch": torch_ddp, "memory": memory}


def main() -> None:
    work, preset, *numbers = sys.argv[1:]
    found = WORK[work](preset, *map(int, numbers))
    if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")) == "0":
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
