"""What the contenders of `processes.py` do, each in processes of its own.

    python processes_work.py WORK PRESET ROWS PORT

Each process gets ready, connects to PORT and says its rank. Then it waits for a line, without using the processor: the
name of a method of its work, whose result it answers as JSON. The end of the lines is the end of the process.
WORK memory prints the bytes of AdamW's state and needs no PORT.
"""

from __future__ import annotations

import json
import os
import socket
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
from tinygpt.parallel import GradientBuckets, current, launched

SIZES = [2**n for n in range(8, 23, 2)]  # float32 elements of the sums that are timed
PARTS = ("forward and backward", "buckets meanwhile", "waiting for the sums", "agreeing", "norm", "update")


class Timed(GradientBuckets):
    """Buckets that know how long they kept the backward pass from computing."""

    inside = 0.0

    def _ready(self, leaf: Any) -> None:
        begin = time.perf_counter()
        super()._ready(leaf)
        self.inside += time.perf_counter() - begin


def clocks() -> np.ndarray:
    """Seconds of the clock on the wall, and of the processor in all threads of this process."""
    return np.array([time.perf_counter(), time.process_time()])


class Ours:
    """Training steps of this process, and the seconds of their PARTS. The sums of a step may all begin after its
    backward pass (`afterwards`), so that they can be timed alone."""

    def __init__(self, preset: str, rows: int) -> None:
        from train_step import PRESETS

        self.team = current()
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
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - begin

    def step(self) -> dict[str, Any]:
        """Take a step. Returns its seconds, those of the processor, and those of its parts."""
        return self._take(overlapped=True)

    def afterwards(self) -> dict[str, Any]:
        """Take a step whose sums begin after the backward pass, when all have ended it."""
        return self._take(overlapped=False)

    def _take(self, overlapped: bool) -> dict[str, Any]:
        team, buckets = self.team, self.buckets
        self.parts = {}
        team.barrier()
        begin = clocks()
        with self.part("forward and backward"):
            loss = self.model.loss(self.inputs, self.targets)
            if buckets is None or not overlapped:
                loss.backward()
            else:
                buckets.inside = 0.0
                with buckets.watching():
                    loss.backward()
        idle = 0.0
        if buckets is not None:
            if overlapped:
                self.parts["forward and backward"] -= buckets.inside
                self.parts["buckets meanwhile"] = buckets.inside
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
        seconds, processor = clocks() - begin
        return {"seconds": seconds - idle, "processor": processor, "parts": self.parts}

    def sums(self) -> dict[str, Any]:
        """Seconds of a sum over all processes by messages, for each of SIZES; of the largest also of the processor."""
        times, processor = [], []
        for size in SIZES:
            array, seen = np.zeros(size, np.float32), []
            for _ in range(12):
                self.team.barrier()
                begin = clocks()
                self.team.all_reduce(array)
                seen.append(clocks() - begin)
            times.append(statistics.median(found[0] for found in seen[3:]))
            processor.append(min(found[1] for found in seen[3:]))
        return {"times": times, "processor": processor[-1] / SIZES[-1]}

    def facts(self) -> dict[str, Any]:
        """What does not change from step to step."""
        count = 0 if self.buckets is None else len(self.buckets.buckets)
        return {"parameters": sum(p.size for p in self.parameters), "buckets": count}


class Torch:
    """The same steps in PyTorch, with DistributedDataParallel over gloo if there are several processes."""

    def __init__(self, preset: str, rows: int) -> None:
        import torch
        from peer_torch import TorchGPT
        from torch.nn.parallel import DistributedDataParallel
        from train_step import PRESETS

        torch.set_num_threads(int(os.environ["TINYGPT_NUM_THREADS"]))
        torch.manual_seed(0)
        config, _, T, _ = PRESETS[preset]
        rank, size = launched()
        self.torch, self.together, self.model = torch, size > 1, TorchGPT(config)
        self.parameters = list(self.model.parameters())
        if self.together:
            torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
            self.model = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.ids = torch.randint(config.vocab_size, (rows, T + 1))

    def step(self) -> dict[str, Any]:
        if self.together:
            self.torch.distributed.barrier()
        begin = clocks()
        loss = self.model(self.ids[:, :-1].contiguous(), self.ids[:, 1:].contiguous())
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds, processor = clocks() - begin
        return {"seconds": seconds, "processor": processor}


def memory(preset: str) -> dict[str, Any]:
    """The bytes of AdamW's state on each process, whole and sharded."""
    from tinygpt.parallel import ShardedOptimizer

    ours = Ours(preset, 1)
    whole = 2 * sum(parameter.data.nbytes for parameter in ours.parameters)
    sharded = ShardedOptimizer(ours.optimizer, GradientBuckets(ours.parameters, ours.team, scatter=True))
    return {"whole": whole, "sharded": ours.team.gather_values(sharded.state_bytes)}


WORK: dict[str, type[Ours] | type[Torch]] = {"ours": Ours, "torch": Torch}


def main() -> None:
    work, preset, *numbers = sys.argv[1:]
    if work == "memory":
        found = memory(preset)
        print(json.dumps(found) if launched()[0] == 0 else "", end="", flush=True)
        return
    rows, port = map(int, numbers)
    made = WORK[work](preset, rows)
    for _ in range(2):  # a warm-up; and the first step finds the order of the buckets
        made.step()
    with socket.create_connection(("127.0.0.1", port)) as line, line.makefile("rw") as file:
        print(launched()[0], file=file, flush=True)
        for what in file:
            print(json.dumps(getattr(made, what.strip())()), file=file, flush=True)


if __name__ == "__main__":
    main()
