"""A training step on a GPU, compared with PyTorch, and the share of the memory bandwidth that the CUDA kernels reach.

    python benchmarks/gpu.py [--presets baby gpt2] [--dtypes float32 tf32 bfloat16] [--compile] [--rounds 5]

Each contender is a separate process with the same weights and the same batches. They take turns, one burst of steps
each, timed with CUDA events. A step is forward, backward, clipping to norm 1 and AdamW. `tinygpt` replays CUDA graphs,
`tinygpt-launches` does not. PyTorch uses its fused attention and AdamW(fused=True), and with --compile also
torch.compile. If the first losses do not agree (to 1e-3 in float32, to 0.05 in 16 bits), nothing is written. baby has
B=64, T=256, gpt2 B=16, T=1024; no dropout. Memory is what each library has reserved on the GPU for arrays. Model FLOPs
per token are 6 N + 12 L C T.

The tables are written to benchmarks/results/gpu.md, with the targets, met or not. Without a GPU, or without a PyTorch
build for it, an error message is printed, nothing is written, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from gpu_worker import CONTENDERS, DTYPES, PRESETS

from tinygpt import backends
from tinygpt.errors import UsageError

RESULTS = Path(__file__).parent / "results" / "gpu.md"
AGREE = {"float32": 1e-3, "tf32": 0.05, "bfloat16": 0.05}


@dataclass
class Timing:
    """One contender's bursts at a preset and a dtype."""

    preset: str
    dtype: str
    who: str
    ms: list[float] = field(default_factory=list)  # per step, one entry per burst
    memory: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


@dataclass
class Measurements:
    """The data of the report."""

    machine: dict[str, str]
    timings: list[Timing]
    copy: float = 0.0  # bytes per second
    kernels: list[tuple[str, str, float]] = field(default_factory=list)  # (name, dtype, bytes per second)
    losses: dict[str, Any] = field(default_factory=dict)


def machine() -> dict[str, str]:
    """The GPU, its driver, the versions. Raises UsageError if there is no GPU, or no PyTorch build for it."""
    backend = backends.get("cupy")
    cupy = backend.require()
    try:
        import torch
    except ImportError as error:
        raise UsageError("PyTorch is not installed, so there is nothing to compare with: install it") from error
    if not torch.cuda.is_available():
        raise UsageError("the installed PyTorch finds no GPU: install its build for CUDA")
    driver = cupy.cuda.runtime.driverGetVersion()
    return {
        "GPU": torch.cuda.get_device_name(),
        "driver": f"for CUDA {driver // 1000}.{driver % 1000 // 10}",
        "tinygpt": backend.describe(),
        "PyTorch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "Python": platform.python_version(),
    }


class Worker:
    """A process of gpu_worker.py."""

    def __init__(self, *arguments: str) -> None:
        self.name = " ".join(arguments)
        command = [sys.executable, str(Path(__file__).with_name("gpu_worker.py")), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self, question: str = "") -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} exited early")
        return json.loads(line)

    def stop(self) -> None:
        self.process.communicate()


def measure(preset: str, dtype: str, names: list[str], rounds: int) -> list[Timing]:
    """Measure the contenders, in turn."""
    steps = PRESETS[preset][3]
    timings = [Timing(preset, dtype, name) for name in names]
    workers = [Worker("step", name, preset, dtype) for name in names]
    first = {name: worker.answer("1")["loss"] for name, worker in zip(names, workers, strict=True)}
    if max(first.values()) - min(first.values()) > AGREE[dtype]:
        raise SystemExit(f"{preset}, {dtype}: the first losses differ, so a comparison would mean nothing: {first}")
    for worker in workers:
        worker.answer("5")  # warm-up: compiles the kernels and captures the graphs
    for _ in range(rounds):
        for timing, worker in zip(timings, workers, strict=True):
            found = worker.answer(str(steps))
            timing.ms.append(found["ms"])
            timing.memory = found["memory"]
    for worker in workers:
        worker.stop()
    return timings


# The report ---------------------------------------------------------------------------------------


def flops(preset: str) -> float:
    """Model FLOPs of a step, computed like `GPT.flops_per_token`, but without building the model."""
    config, B, T, _ = PRESETS[preset]
    C, L, bias = config.n_embd, config.n_layer, int(config.bias)
    multiplied = config.vocab_size * C + L * (12 * C * C + 9 * C * bias) + (2 * L + 1) * C * (1 + bias)
    return float((6 * multiplied + 12 * L * C * T) * B * T)


def report(found: Measurements, command: str) -> str:
    """The report, in Markdown."""
    lines = ["# Training on a GPU, beside PyTorch", "", f"Made by `{command}`.", ""]
    lines += [f"- {name}: {value}" for name, value in found.machine.items()]
    lines += [
        "",
        "## A training step",
        "",
        "Medians; ratios to PyTorch eager of the same dtype: time theirs over ours.",
    ]
    lines += [
        "",
        "| preset | dtype | who | ms/step | tokens/s | TFLOP/s | memory MB | PyTorch's time / this | memory / its |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|", *step_rows(found.timings)]
    if found.kernels:
        lines += ["", "## Kernels bound by memory", "", f"A copy on the device moves {found.copy / 1e9:,.0f} GB/s."]
        lines += ["", "| kernel | dtype | GB/s | of a copy |", "|---|---|---|---|"]
        lines += [f"| {n} | {d} | {rate / 1e9:,.0f} | {rate / found.copy:.0%} |" for n, d, rate in found.kernels]
    lines += ["", "## Targets", "", *targets(found), ""]
    return "\n".join(lines)


def step_rows(timings: list[Timing]) -> list[str]:
    rows = []
    for timing in timings:
        _, B, T, _ = PRESETS[timing.preset]
        rival = rival_of(timings, timing.preset, timing.dtype)
        ratios = f"{rival.median / timing.median:.2f} | {timing.memory / rival.memory:.2f}" if rival else "- | -"
        ms, rate = timing.median, B * T / timing.median * 1e3
        rows.append(
            f"| {timing.preset} | {timing.dtype} | {timing.who} | {ms:.2f} | {rate:,.0f} "
            f"| {flops(timing.preset) / ms / 1e9:.1f} | {timing.memory / 1e6:,.0f} | {ratios} |"
        )
    return rows


def of(timings: list[Timing], preset: str, dtype: str, who: str) -> Timing | None:
    return next((t for t in timings if (t.preset, t.dtype, t.who) == (preset, dtype, who)), None)


def rival_of(timings: list[Timing], preset: str, dtype: str) -> Timing | None:
    return of(timings, preset, dtype, "torch")


def targets(found: Measurements) -> list[str]:
    """One line per target: met, not met, or not measured."""
    lines = []
    for preset, dtype, least in (("baby", "float32", 1.5), ("baby", "bfloat16", 1.5), ("gpt2", "bfloat16", 1.0)):
        ours, rival = of(found.timings, preset, dtype, "tinygpt"), rival_of(found.timings, preset, dtype)
        aim = f"{preset}, {dtype}: {least} times PyTorch eager or better"
        ratio = rival.median / ours.median if ours and rival else None
        lines.append(verdict(aim, ratio, ratio is not None and ratio >= least, "{:.2f} times"))
    for preset in ("baby", "gpt2"):
        ours, rival = of(found.timings, preset, "bfloat16", "tinygpt"), rival_of(found.timings, preset, "bfloat16")
        share = ours.memory / rival.memory if ours and rival else None
        aim = f"{preset}, bfloat16: no more memory than PyTorch"
        lines.append(verdict(aim, share, share is not None and share <= 1.0, "{:.2f} of it"))
    slowest = min(found.kernels, key=lambda row: row[2], default=None)
    share = slowest[2] / found.copy if slowest else None
    which = f" ({slowest[0]}, {slowest[1]})" if slowest else ""
    aim = f"each kernel bound by memory at 80% of a copy's bandwidth or better{which}"
    lines.append(verdict(aim, share, share is not None and share >= 0.8, "the slowest at {:.0%}"))
    difference = found.losses.get("difference")
    aim = "the losses of 200 steps agree with the CPU's to 1e-3, in float32"
    lines.append(verdict(aim, difference, difference is not None and difference <= 1e-3, "they differ by {:.1e}"))
    return lines


def verdict(aim: str, value: float | None, met: bool, words: str) -> str:
    if value is None:
        return f"- not measured: {aim}"
    return f"- {'met' if met else 'NOT MET'}: {aim}: {words.format(value)}"


def not_measured(why: str) -> str:
    """The contents of the file until a measurement is made."""
    return (
        "# Training on a GPU, beside PyTorch\n\nNothing has been measured yet: "
        + why
        + "\n\nOn a machine with an NVIDIA "
        "GPU, with PyTorch's build for CUDA beside tinygpt:\n\n```sh\npip install -e '.[cuda12]' torch   # or cuda13\n"
        "pytest -m gpu\npython benchmarks/gpu.py --compile\n```\n\n"
        "The second line tests everything on the GPU, the third replaces this file.\n\n## Targets\n\n"
        + "\n".join(targets(Measurements({}, [])))
        + "\n"
    )


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--no-kernels", action="store_true", help="leave the kernels out")
    parser.add_argument("--rounds", type=int, default=5, help="bursts per contender (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the tables go (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    try:
        facts: Mapping[str, str] = machine()
    except UsageError as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return 2
    names = [name for name in CONTENDERS if options.compile or name != "torch-compile"]
    found = Measurements(dict(facts), [])
    for preset in options.presets:
        for dtype in options.dtypes:
            found.timings += measure(preset, dtype, names, options.rounds)
            print(*step_rows(found.timings)[-len(names) :], sep="\n", flush=True)
    if not options.no_kernels:
        made = Worker("kernels").answer()
        found.copy, found.kernels = made["copy"], [tuple(row) for row in made["kernels"]]
    found.losses = Worker("losses").answer()
    options.out.write_text(report(found, " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])), encoding="utf-8")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
