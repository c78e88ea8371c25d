"""The speed and the memory of a training step in bfloat16: beside our own in float32, and beside PyTorch's in bfloat16.

    python benchmarks/bfloat16_step.py [--presets baby gpt2] [--rounds 5]

As in train_step.py, each contender is a process with the same weights and the same batch, and they take turns.
`bfloat16` and `float32` are tinygpt, `torch` is PyTorch with torch.autocast("cpu", torch.bfloat16) and
AdamW(fused=True), `torch-compile` (with --compile) that and torch.compile. In bfloat16 a loss is rounded on its way: if
the first losses do not agree to 0.02, nothing is printed; if only torch.compile's differs, it is left out. Memory is
the peak of the process minus its memory after imports. Where the processor has no bfloat16 products, the targets do not
apply.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import machine
from train_step import (
    LEARNING_RATE,
    PRESETS,
    Contender,
    batch,
    bursts,
    resident,
    take_turns,
    those_that_agree,
    those_that_start,
)  # fmt: skip

import tinygpt as tg
from tinygpt import GPT, GPTConfig
from tinygpt.backends import get
from tinygpt.ops.cast import keep_rounded

AGREE = 0.02  # of a first loss of 4 to 11
AIM_TORCH = 1.2  # PyTorch's time over ours
AIMS_FLOAT32 = {"baby": 1.5, "gpt2": 1.5}  # our time in float32 over that in bfloat16
FLOOR = "at most 2 times float32: an instruction of VDPBF16PS adds two products where one of FMA adds one"
NO_PRODUCTS = "this processor, or this level of the kernels, has no bfloat16 products: the targets do not apply"


def tinygpt_step(config: GPTConfig, dtype: str) -> Any:
    """A step as the training loop takes it: AdamW keeps the rounded copies of the weights up to date."""
    model = GPT(config, seed=0)
    parameters = list(model.parameters())
    optimizer = tg.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.1)

    def step(idx: np.ndarray, targets: np.ndarray) -> float:
        with model.compute_in(dtype):
            keep_rounded(model, optimizer)
            loss = model.loss(idx, targets)
            loss.backward()
        norm = tg.optim.grad_norm(parameters)
        optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0))
        optimizer.zero_grad()
        return loss.item()

    return step


def work(contender: str, preset: str, weights: str, cpu_time: bool) -> None:
    """What a contender's process does."""
    config, _, _, steps = PRESETS[preset]
    if contender.startswith("torch"):
        import peer_torch

        with np.load(weights, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        before = resident() - sum(a.nbytes for a in arrays.values()) / 2**20
        compiled = contender == "torch-compile"
        step = peer_torch.make_step(config, arrays, LEARNING_RATE, fused=True, compiled=compiled, bfloat16=True)
    else:
        before = resident()
        step = tinygpt_step(config, contender)
    bursts(step, *batch(preset), steps, before, time.process_time if cpu_time else None)


def measure(preset: str, names: list[str], rounds: int, *options: str) -> list[Contender]:
    """All contenders of a preset, measured in turn."""
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.npz")
        np.savez(weights, **{name: p.data for name, p in GPT(PRESETS[preset][0], seed=0).named_parameters()})
        contenders = those_that_start(preset, names, weights, __file__, *options)
        contenders = those_that_agree(preset, contenders, AGREE)
        take_turns(contenders, rounds)
    return contenders


def report(preset: str, contenders: list[Contender]) -> tuple[list[str], list[str]]:
    """The rows of the table, and the targets, met or not. The first contender is ours in bfloat16."""
    ours, lines, ratios = contenders[0], [], {}
    for contender in contenders:
        seconds = statistics.median(contender.times)
        ratios[contender.name] = contender.over(ours)
        lines.append(
            f"| {preset} | {contender.name} | {seconds * 1e3:.1f} | {contender.memory:,.0f} "
            f"| {ratios[contender.name]:.2f} | {contender.memory / ours.memory:.2f} |"
        )
    said = []
    if (aim := AIMS_FLOAT32.get(preset)) is not None:
        ratio = ratios["float32"]
        said.append(machine.verdict(ratio >= aim, f"{preset} in bfloat16: {ratio:.2f} times float32", str(aim), FLOOR))
    rivals = {name: ratio for name, ratio in ratios.items() if name.startswith("torch")}
    if rivals:
        name = min(rivals, key=lambda rival: rivals[rival])
        words = f"{preset} in bfloat16: {rivals[name]:.2f} times {name}"
        said.append(machine.verdict(rivals[name] >= AIM_TORCH, words, str(AIM_TORCH), "the products are the same"))
    return lines, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["tiny", "baby", "gpt2"])
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--rounds", type=int, default=5, help="bursts per contender (default: 5)")
    words = "measure the processor's time: for a machine that others use, with one thread"
    parser.add_argument("--cpu-time", action="store_true", help=words)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.presets[0], options.weights, options.cpu_time)
        return
    names = ["bfloat16", "float32"]
    if importlib.util.find_spec("torch"):
        names += ["torch"] + ["torch-compile"] * options.compile
    print(f"{machine.headline()}\n{machine.peers()}")
    applies = get("numpy").has_bfloat16_products()
    print("" if applies else NO_PRODUCTS + "\n")
    print("| preset | who | ms/step | memory MB | time, ours = 1 | memory, ours = 1 |\n|---|---|---|---|---|---|")
    said: list[str] = []
    for preset in options.presets:
        lines, found = report(preset, measure(preset, names, options.rounds, *["--cpu-time"] * options.cpu_time))
        print("\n".join(lines), flush=True)
        said += found
    print("\n" + "\n".join(said if applies else []))


if __name__ == "__main__":
    main()
