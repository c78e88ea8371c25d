"""Where the time of a training step goes: each operation, forward and backward, compared with the machine's limits.

    python benchmarks/profile_step.py [--preset tiny|baby|baby-dropout|gpt2] [--steps 20]
    python benchmarks/profile_step.py --model out/shakespeare-tiny          # your own run's model
    python benchmarks/profile_step.py --model gpt2 --batch 4 --length 256   # a folder that GPT.from_pretrained takes

Columns: calls per step; milliseconds per step (median); share of the step; megabytes that must move (arrays in and out,
each counted once) and the resulting rate; GFLOP/s of the operations that multiply matrices, and their share of the
multiply-add peak; the floor, which is those multiply-adds at the rate of the product's inner block alone, and those
bytes at the read bandwidth of all threads; the time over that floor, below 1 where arrays were still in the caches.
The rest, up to 100%, is Python between the operations. A training run repeats the operations' kernels from a plan
(`tinygpt/training/step/planned_step.py`), almost without that rest: the last line has the time of such a step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import machine
import train_step
from quiet import quietly

import tinygpt as tg
from tinygpt import optim
from tinygpt.checkpoint import CheckpointFolder
from tinygpt.function import Function


@dataclass
class Record:
    """One operation in one direction."""

    seconds: list[float] = field(default_factory=list)
    bytes: int = 0
    flops: float = 0.0


def arrays_in(*values: Any) -> int:
    """The total bytes of the arrays in values, including those in lists and tuples."""
    total = 0
    for value in values:
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, (list, tuple)):
            total += arrays_in(*value)
    return total


def flops_of(name: str, direction: str, inputs: tuple[Any, ...]) -> float:
    """Floating-point operations of the matrix products in an operation's forward pass, twice that for backward."""
    if name == "Linear":
        x, weight = inputs[:2]
        forward = 2.0 * (x.size // x.shape[-1]) * weight.size
    elif name == "QKVAttention":
        B, T, width = inputs[0].shape
        forward = 2.0 * B * T * T * width / 3  # two products, half of each masked
        return forward * (1 if direction == "forward" else 2.5)
    elif name == "LinearCrossEntropy":  # its forward pass computes the gradients too
        x, weight = inputs[:2]
        return 6.0 * (x.size // x.shape[-1]) * weight.size if direction == "forward" else 0.0
    else:
        return 0.0
    return forward * (1 if direction == "forward" else 2)


class Profile:
    """Records the time, bytes and FLOPs of every operation's forward and backward, once installed."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], Record] = defaultdict(Record)

    def install(self) -> None:
        for cls in every_operation(Function):
            for direction in ("forward", "backward"):
                if direction in cls.__dict__:
                    setattr(cls, direction, self.timed(cls.__name__, direction, cls.__dict__[direction]))

    def timed(self, name: str, direction: str, method: Callable[..., Any]) -> Callable[..., Any]:
        record = self.records[name, direction]

        def call(node: Function, *inputs: Any, **options: Any) -> Any:
            seen = inputs if direction == "forward" else (*inputs, *(node.saved or ()))
            flops = flops_of(name, direction, inputs if direction == "forward" else node.__dict__.get("given", ()))
            if direction == "forward":
                node.given = inputs  # type: ignore[attr-defined]
            start = time.perf_counter()
            result = method(node, *inputs, **options)
            record.seconds.append(time.perf_counter() - start)
            record.bytes += arrays_in(*seen, result)
            record.flops += flops
            return result

        return call

    def around(self, name: str, function: Callable[..., Any], moved: int) -> Callable[..., Any]:
        """Time a function that is not an operation."""
        record = self.records[name, ""]

        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            record.seconds.append(time.perf_counter() - start)
            record.bytes += moved
            return result

        return call


def every_operation(cls: type) -> list[type]:
    found = []
    for sub in cls.__subclasses__():
        found += [sub, *every_operation(sub)]
    return found


def model_and_batch(options: argparse.Namespace) -> tuple[tg.GPT, np.ndarray, np.ndarray]:
    """The model of a preset, a training run or a Hugging Face folder; --batch and --length override its own sizes."""
    if options.model is None:
        config, B, T, _ = train_step.PRESETS[options.preset]
        model = tg.GPT(config, seed=0)
    elif (Path(options.model) / "config.json").exists():
        model, B, T = tg.GPT.from_pretrained(options.model), 4, 256
    else:
        model = tg.interop.from_pretrained(options.model, checkpoint="latest")
        state = CheckpointFolder(options.model).load("latest").state
        B, T = state["training_config"]["batch_size"], model.config.block_size
    B, T = options.batch or B, min(options.length or T, model.config.block_size)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (B, T + 1))
    return model, np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=train_step.PRESETS, default="tiny")
    parser.add_argument("--model", help="instead of a preset: the folder of a training run, or one with a GPT-2")
    parser.add_argument("--batch", type=int, help="sequences in a batch (default: the preset's or the run's; GPT-2: 4)")
    parser.add_argument("--length", type=int, help="tokens in a sequence (default: the model's; GPT-2: 256)")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    try:
        model, idx, targets = model_and_batch(options)
    except tg.UsageError as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    model.train()
    parameters = list(model.parameters())
    size = sum(p.data.nbytes for p in parameters)
    optimizer = optim.AdamW(parameters, lr=1e-6)
    profile = Profile()
    norm = profile.around("gradient norm", optim.grad_norm, size)
    update = profile.around("AdamW", optimizer.step, 7 * size)

    def step(passes: Callable[..., Any] | None = None) -> None:
        if passes is None:
            model.loss(idx, targets).backward()
        else:
            passes(idx, targets, 1.0)
        update(grad_scale=optim.clip_coefficient(norm(parameters), 1.0))
        optimizer.zero_grad()

    planned_step = partial(step, train_step.planned_passes(model, *idx.shape))
    planned = quietly(partial(timed, planned_step, options.steps))
    profile.install()
    step()

    def profiled() -> float:
        for record in profile.records.values():
            record.seconds.clear()
            record.bytes, record.flops = 0, 0.0
        return timed(step, options.steps)

    total = quietly(profiled)
    peak = quietly(machine.fma_peak)
    print(machine.headline())
    print(f"{model.num_parameters():,} parameters, B = {idx.shape[0]}, T = {idx.shape[1]}")
    limits = f"one-thread copy {machine.copy_bandwidth() / 1e9:.0f} GB/s"
    print(f"float32 multiply-add peak {peak / 1e9:.0f} GFLOP/s, {limits}" if peak else limits)
    block = (quietly(machine.block_rate) or (machine.matmul_rate(), 0.0))[0]
    bandwidth = quietly(machine.read_bandwidth) or machine.copy_bandwidth()
    print(f"floor: products at {block / 1e9:.0f} GFLOP/s, bytes at {bandwidth / 1e9:.0f} GB/s")
    report(profile, total, options.steps, peak, (block, bandwidth))
    print(f"\nFrom a plan, as in a training run: {planned * 1e3:.1f} ms (median of {options.steps})")


def timed(step: Callable[[], Any], steps: int) -> float:
    """The median of so many steps, in seconds."""
    totals = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        totals.append(time.perf_counter() - start)
    return statistics.median(totals)


def report(profile: Profile, step: float, steps: int, peak: float | None, limits: tuple[float, float]) -> None:
    """limits: FLOP/s of products and bytes per second, for the floor."""
    print(f"\nA step takes {step * 1e3:.1f} ms (median of {steps})\n")
    print("| operation | calls | ms | share | MB | GB/s | GFLOP/s | of peak | floor, ms | over the floor |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    lines, lowest = [], 0.0
    for (name, direction), record in profile.records.items():
        if not record.seconds:
            continue
        per_step = np.array(record.seconds).reshape(steps, -1).sum(axis=1)
        elapsed = float(np.median(per_step))
        moved, rate = record.bytes / steps, record.flops / steps / elapsed
        flops = f"{rate / 1e9:.0f} | {rate / peak:.0%}" if rate and peak else "- | -"
        calls = len(record.seconds) / steps
        floor = record.flops / steps / limits[0] + moved / limits[1]
        lowest += floor
        text = (
            f"| {name} {direction}".rstrip() + f" | {calls:.0f} | {elapsed * 1e3:.3f} | {elapsed / step:.1%} "
            f"| {moved / 1e6:.1f} | {moved / elapsed / 1e9:.1f} | {flops} "
            f"| {floor * 1e3:.3f} | {elapsed / floor if floor else 0:.2f} |"
        )
        lines.append((elapsed, text))
    for _, text in sorted(lines, reverse=True):
        print(text)
    rest = step - sum(elapsed for elapsed, _ in lines)
    print(f"| between the operations | | {rest * 1e3:.3f} | {rest / step:.1%} | | | | | | |")
    print(f"| the step | | {step * 1e3:.3f} | 100% | | | | | {lowest * 1e3:.3f} | {step / lowest:.2f} |")


if __name__ == "__main__":
    main()
