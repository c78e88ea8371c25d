"""The speed of a training step: tinygpt as a run trains, tinygpt op by op, its reference, PyTorch eager and compiled.

    python benchmarks/train_step.py [--presets tiny baby ...] [--compile] [--rounds 7]

Each contender is a separate process with the same weights and the same batch. They take turns, one burst of steps each,
so that if the machine slows down, all of them slow down. Times are medians over the rounds, and so are ratios, each of
two bursts of the same round. A step is forward, backward, clipping to norm 1 and AdamW. `tinygpt` takes it as a
training run does, from a plan of its kernels' calls (`tinygpt/training/step/planned_step.py`), `tinygpt-eager` as a
loop of your own does. `torch` is PyTorch with its defaults, `torch-fused` uses AdamW(fused=True), `torch-compile` (with
--compile) that and torch.compile. If our first loss and PyTorch's do not agree to 1e-4, nothing is printed. If only
torch.compile's differs, or its process dies, it is left out, and a line says so: PyTorch 2.13 held to AVX2 computes
another loss with it, and crashes with dropout.

Model FLOPs per token are 6 N + 12 L C T. The peak is that of multiply-adds on registers, measured in this run. "the
block" is the inner loop of our matrix product with its operands in the caches, an upper bound for every product; it is
below the peak because the processor lowers its clock. Memory is the peak of the process minus its memory after imports.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import tinygpt as tg
from tinygpt import GPT, GPTConfig
from tinygpt.training.step.planned_step import PlannedStep

TINY = GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False)
BABY = GPTConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384, bias=False)
GPT2 = GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
# name: (model, B, T, steps in a burst)
PRESETS = {
    "tiny": (TINY, 12, 64, 20),
    "baby": (BABY, 16, 256, 1),
    "baby-dropout": (replace(BABY, dropout=0.2), 16, 256, 1),
    "gpt2": (GPT2, 4, 256, 1),
}
LEARNING_RATE = 1e-4
# The aims, for each preset: PyTorch's time over ours at a level, and our memory over PyTorch's.
RATIOS = {
    "avx2": {"tiny": 1.5, "baby": 1.35, "baby-dropout": 1.9, "gpt2": 1.5},
    "avx512": {"tiny": 1.4, "baby": 1.3, "baby-dropout": 1.75, "gpt2": 1.3},
}
MEMORY = {"tiny": 0.25, "baby": 0.45, "baby-dropout": 0.3, "gpt2": 0.6}


def batch(preset: str) -> tuple[np.ndarray, np.ndarray]:
    """The batch (B, T) that every contender trains on."""
    config, B, T, _ = PRESETS[preset]
    ids = tg.Generator(7).integers(config.vocab_size, (B, T + 1))
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def planned_passes(model: GPT, B: int, T: int) -> PlannedStep:
    """Forward and backward pass as a training run computes them: from a plan, which other batches are needed for."""

    def work(idx: np.ndarray, targets: np.ndarray, scale: float) -> Any:
        loss = model.loss(idx, targets)
        loss.backward(scale)
        return loss

    passes, state, ids = PlannedStep(model, work), model.generator.state_dict(), tg.Generator(8)
    while passes.wanted and not passes.repeats:
        passes(*(ids.integers(model.config.vocab_size, (B, T)) for _ in range(2)), 1.0)
        model.zero_grad()
    model.generator.load_state_dict(state)
    return passes


def tinygpt_step(preset: str, contender: str = "tinygpt") -> Any:
    config, B, T, _ = PRESETS[preset]
    model = GPT(config, seed=0)
    model.recompute = contender == "recompute"
    passes = planned_passes(model, B, T) if contender == "tinygpt" else None
    parameters = list(model.parameters())
    optimizer = tg.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.1)

    def step(idx: np.ndarray, targets: np.ndarray) -> float:
        if passes is not None:
            loss = passes(idx, targets, 1.0)
        else:
            loss = model.loss(idx, targets)
            loss.backward()
        norm = tg.optim.grad_norm(parameters)
        optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0))
        optimizer.zero_grad()
        return loss.item()

    return step


def resident_peak() -> float:
    """The peak memory of this process, in MB. On Linux not from getrusage, whose peak includes the parent process."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 2**20 if sys.platform == "darwin" else most / 2**10


def resident() -> float:
    """The current memory of this process, in MB."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resident_peak()


def work(contender: str, preset: str, weights: str) -> None:
    """What a contender's process does."""
    config, _, _, steps = PRESETS[preset]
    idx, targets = batch(preset)
    if contender.startswith("torch"):
        import peer_torch

        with np.load(weights, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        peer_torch.torch.manual_seed(0)
        before = resident() - sum(a.nbytes for a in arrays.values()) / 2**20
        step = peer_torch.make_step(
            config, arrays, LEARNING_RATE, fused=contender != "torch", compiled=contender == "torch-compile"
        )
        del arrays
    else:
        before = resident()
        step = tinygpt_step(preset, contender)
    bursts(step, idx, targets, steps, before)


def bursts(step: Any, idx: np.ndarray, targets: np.ndarray, steps: int, before: float, clock: Any = None) -> None:
    """Print the first loss; then, for each line on standard input, a step's seconds and the memory since `before`."""
    clock = clock or time.perf_counter
    print(f"{step(idx, targets):.9f}", flush=True)
    step(idx, targets)
    for _ in sys.stdin:
        start = clock()
        for _ in range(steps):
            step(idx, targets)
        print((clock() - start) / steps, resident_peak() - before, flush=True)


class Contender:
    def __init__(self, name: str, preset: str, weights: str, script: str = __file__, *more: str) -> None:
        self.name = name
        environment = dict(os.environ)
        if name == "reference":
            environment["TINYGPT_KERNELS"] = "reference"
        command = [sys.executable, script, "--work", name, "--presets", preset, "--weights", weights, *more]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.times: list[float] = []
        self.memory = 0.0
        self.first_loss = float(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} exited early")
        return line

    def burst(self) -> float:
        """A step's seconds, the mean of a burst."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        seconds, self.memory = map(float, self.answer().split())
        return seconds

    def over(self, other: Contender) -> float:
        """The ratio of its time to another's: the median over the rounds."""
        return statistics.median(a / b for a, b in zip(self.times, other.times, strict=True))

    def stop(self) -> None:
        self.process.communicate()


def take_turns(contenders: list[Contender], rounds: int) -> None:
    """A burst of each in every round, then all end."""
    from quiet import quietly

    for _ in range(rounds):
        for contender in contenders:
            contender.times.append(quietly(contender.burst))
    for contender in contenders:
        contender.stop()


def measure(preset: str, names: list[str], rounds: int) -> list[Contender]:
    """All contenders of a preset, measured in turn."""
    config = PRESETS[preset][0]
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.npz")
        np.savez(weights, **{name: p.data for name, p in GPT(config, seed=0).named_parameters()})
        contenders = those_that_start(preset, names, weights)
        if config.dropout == 0:
            contenders = those_that_agree(preset, contenders)
        take_turns(contenders, rounds)
    return contenders


def those_that_start(preset: str, names: list[str], weights: str, *script: str) -> list[Contender]:
    """The contenders, without a torch.compile whose process dies in its first step."""
    found = []
    for name in names:
        try:
            found.append(Contender(name, preset, weights, *script))
        except SystemExit as error:
            if name != "torch-compile":
                raise
            print(f"\nLeft out of {preset}: {error}.\n")
    return found


def those_that_agree(preset: str, contenders: list[Contender], apart: float = 1e-4) -> list[Contender]:
    """The contenders, without a torch.compile whose first loss is wrong: more than `apart` from another. Exits if the
    losses of any others are, or are nan."""
    others = [c for c in contenders if c.name != "torch-compile"]
    losses = [c.first_loss for c in others]
    pairs = ", ".join(f"{c.name} {c.first_loss:.6f}" for c in contenders)
    if not np.ptp(losses) <= apart:
        raise SystemExit(f"{preset}: the first losses differ, so the comparison would mean nothing: {pairs}")
    wrong = [c for c in contenders if not np.ptp([*losses, c.first_loss]) <= apart]
    for contender in wrong:
        print(f"\nLeft out of {preset}: torch-compile, whose first loss is wrong: {pairs}.\n")
        contender.stop()
    return [c for c in contenders if c not in wrong]


def step_flops(preset: str) -> float:
    """Model FLOPs of a step."""
    config, B, T, _ = PRESETS[preset]
    a_token = GPT(replace(config, n_layer=1), seed=0).flops_per_token(T)  # of one layer, to keep the model small
    a_token += (config.n_layer - 1) * (6 * 12 * config.n_embd**2 + 12 * config.n_embd * T)
    return a_token * B * T


def report(preset: str, contenders: list[Contender], peak: float | None) -> list[str]:
    _, B, T, _ = PRESETS[preset]
    lines = []
    for c in contenders:
        median = statistics.median(c.times)
        rate = step_flops(preset) / median
        share = f"{rate / peak:.0%}" if peak else "-"
        lines.append(
            f"| {preset} | {c.name} | {median * 1e3:.1f} | {B * T / median:,.0f} | {rate / 1e9:.0f} | {share} "
            f"| {c.memory:,.0f} | {c.over(contenders[0]):.2f} | {c.memory / contenders[0].memory:.2f} |"
        )
    return lines


def products(preset: str, rounds: int = 3) -> dict[str, float]:
    """The seconds that the matrix products of a step take us and PyTorch, measured in turn, their "flops", and the rate
    of the "block", which is 0 if the products are not ours."""
    import machine
    import ops
    from quiet import quietly

    contenders = {name: ops.Contender(name) for name in ("ours", "torch")}
    layers = PRESETS[preset][0].n_layer
    totals = ops.products_of_a_step(preset.removesuffix("-dropout"), layers, contenders, rounds)
    for contender in contenders.values():
        contender.stop()
    totals["block"] = statistics.median((quietly(machine.block_rate) or (0.0, 0.0))[0] for _ in range(3))
    return totals


def verdicts(preset: str, contenders: list[Contender], peak: float, bound: dict[str, float]) -> list[str]:
    """The targets, met or not, each with the bound that this run's measurements imply."""
    import machine

    ours, rivals = contenders[0], [c for c in contenders if c.name.startswith("torch")]
    step, fastest = statistics.median(ours.times), min(rivals, key=lambda c: c.over(ours))
    ratio = fastest.over(ours)
    rival = ratio * step
    memory = ours.memory / min(c.memory for c in rivals)
    aim_ratio, aim_memory = RATIOS.get(machine.level(), RATIOS["avx2"])[preset], MEMORY[preset]
    where = f"{preset} at {machine.level()}"
    mine, theirs, flops = bound["ours"], bound["torch"], bound["flops"]
    rates = (
        f"the linear layers' matrix products alone take {mine / step:.0%} of the step at {flops / mine / 1e9:.0f} "
        f"GFLOP/s ({flops / mine / peak:.0%} of the peak; PyTorch's {flops / theirs / 1e9:.0f} GFLOP/s)"
    )
    most, at_block = rival / mine, ""
    if bound["block"]:
        rates += f"; the block alone runs at {bound['block'] / 1e9:.0f} ({bound['block'] / peak:.0%} of the peak)"
        at_block = f", were all operations at the block's rate {rival * bound['block'] / step_flops(preset):.2f}"
    return [
        machine.verdict(ratio >= aim_ratio, f"{where}: {ratio:.2f} times {fastest.name}, the faster", f"{aim_ratio}",
                f"{rates}; were all else free, {most:.2f} times would be the most, with PyTorch's products "
                f"{rival / theirs:.2f}{at_block}"),
        machine.verdict(memory <= aim_memory, f"{where}: {memory:.2f} of PyTorch's memory", f"{aim_memory}",
                f"{ours.memory:,.0f} MB, of which parameters, gradients and AdamW's two moments are "
                f"{16 * GPT(PRESETS[preset][0], seed=0).num_parameters() / 2**20:,.0f}"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--recompute", action="store_true", help="measure tinygpt with recomputed layers too")
    parser.add_argument("--no-reference", action="store_true", help="leave the reference bodies out")
    parser.add_argument("--rounds", type=int, default=7, help="bursts per contender (default: 7)")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.presets[0], options.weights)
        return
    import machine
    from quiet import quietly

    names = ["tinygpt", "tinygpt-eager"]
    names += ["reference"] * (not options.no_reference) + ["recompute"] * options.recompute
    if importlib.util.find_spec("torch"):
        names += ["torch", "torch-fused"] + ["torch-compile"] * options.compile
    else:
        print("PyTorch is not installed: measuring tinygpt alone")
    peak = quietly(machine.fma_peak)
    print(f"{machine.headline()}\n{machine.peers()}")
    if peak:
        product = quietly(machine.matmul_rate)
        print(f"float32 multiply-add peak {peak / 1e9:.0f} GFLOP/s, NumPy product {product / 1e9:.0f} GFLOP/s")
        if block := quietly(machine.block_rate):
            print(f"the block of our product {block[0] / 1e9:.0f} GFLOP/s, the peak's loop straight after it "
                  f"{block[1] / 1e9:.0f}: the clock falls under the block")  # fmt: skip
    print("\n| preset | who | ms/step | tokens/s | GFLOP/s | of peak | memory MB | time, ours = 1 | memory, ours = 1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    said: list[str] = []
    for preset in options.presets:
        contenders = measure(preset, names, options.rounds)
        for line in report(preset, contenders, peak):
            print(line, flush=True)
        if peak and "torch" in names:
            said += verdicts(preset, contenders, peak, products(preset))
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
