"""The speed and the memory of a LoRA step: beside a step that trains the whole model, and beside PEFT.

    python benchmarks/lora_step.py [--presets tiny gpt2] [--rounds 5] [--rank 8] [--targets c_attn]

As in train_step.py, each contender is a process with the same weights and the same batch, and they take turns. `full`
is tinygpt training everything, `lora` tinygpt training an adapter, `peft` transformers' GPT-2 with PEFT's adapter in
PyTorch (eager, fused attention, AdamW(fused=True)). A new adapter changes nothing, so all first losses must agree to
1e-4. Memory is the peak of the process minus its memory after imports, the model's weights included.
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
)  # fmt: skip

import tinygpt as tg
from tinygpt import GPT

AIM_TIME, AIM_MEMORY = 0.75, 0.5  # of a full step's


def tinygpt_step(folder: str, rank: int, targets: list[str] | None) -> Any:
    """A training step of tinygpt: of an adapter, or without targets of the whole model."""
    model = GPT.from_pretrained(folder).train()
    if targets is not None:
        tg.nn.add_lora(model, rank, 2 * rank, targets=targets)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = tg.optim.AdamW(parameters, lr=LEARNING_RATE)

    def step(idx: np.ndarray, targets: np.ndarray) -> float:
        loss = model.loss(idx, targets)
        loss.backward()
        norm = tg.optim.grad_norm(parameters)
        optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0))
        optimizer.zero_grad()
        return float(loss.item())

    return step


def peft_step(folder: str, rank: int, targets: list[str]) -> Any:
    """The same step of PEFT."""
    import peft
    import torch
    from torch.nn import functional as F
    from transformers import GPT2LMHeadModel

    base = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=True)
    model = peft.get_peft_model(base, config).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def step(idx: np.ndarray, targets: np.ndarray) -> float:
        logits = model(torch.from_numpy(idx), use_cache=False).logits
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), torch.from_numpy(targets).view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def work(options: argparse.Namespace) -> None:
    """What a contender's process does."""
    preset, (name, rank, *targets) = options.presets[0], options.work.split(",")
    if name == "peft":
        import peft  # noqa: F401  its memory is not the step's
        import transformers  # noqa: F401

        before, make = resident(), peft_step
    else:
        before, make = resident(), tinygpt_step
    step = make(options.weights, int(rank), None if name == "full" else targets)
    bursts(step, *batch(preset), PRESETS[preset][3], before, time.process_time if options.cpu_time else None)


def measure(preset: str, names: list[str], rounds: int, settings: str, *options: str) -> list[Contender]:
    """All contenders of a preset, measured in turn."""
    with tempfile.TemporaryDirectory() as folder:
        GPT(PRESETS[preset][0], seed=0).save_pretrained(folder)
        contenders = [Contender(f"{name},{settings}", preset, folder, __file__, *options) for name in names]
        contenders = those_that_agree(preset, contenders)
        take_turns(contenders, rounds)
    return contenders


def report(preset: str, contenders: list[Contender]) -> tuple[list[str], list[str]]:
    """The rows of the table, and the targets, met or not."""
    lines, ratios = [], {}
    full = contenders[0]
    for contender in contenders:
        seconds, name = statistics.median(contender.times), contender.name.split(",")[0]
        ratios[name] = contender.over(full), contender.memory / full.memory
        time, memory = ratios[name]
        lines.append(
            f"| {preset} | {name} | {seconds * 1e3:.0f} | {contender.memory:,.0f} | {time:.2f} | {memory:.2f} |"
        )
    time, memory = ratios["lora"]
    weights = 4 * GPT(PRESETS[preset][0], seed=0).num_parameters() / 2**20
    said = [
        machine.verdict(time <= AIM_TIME, f"{preset}: {time:.2f} of a full step's time", str(AIM_TIME),
                "at least 0.67: two of a linear layer's three products are left"),
        machine.verdict(memory <= AIM_MEMORY, f"{preset}: {memory:.2f} of its memory", str(AIM_MEMORY),
                f"the weights alone take {weights / full.memory:.2f}"),
    ]  # fmt: skip
    if "peft" in ratios:
        theirs = ratios["peft"]
        words = f"{preset}: {time / theirs[0]:.2f} of PEFT's time, {memory / theirs[1]:.2f} of its memory"
        said.append(
            machine.verdict(time < theirs[0] and memory < theirs[1], words, "below 1", "the products are the same")
        )
    return lines, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["gpt2"])
    parser.add_argument("--rounds", type=int, default=5, help="bursts per contender (default: 5)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=["c_attn"])
    words = "measure the processor's time: for a machine that others use, with one thread"
    parser.add_argument("--cpu-time", action="store_true", help=words)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    names = ["full", "lora"] + ["peft"] * bool(importlib.util.find_spec("peft"))
    print(f"{machine.headline()}\n{machine.peers()}")
    print(f"\nLoRA of rank {options.rank} on {', '.join(options.targets)}\n")
    print("| preset | who | ms/step | memory MB | time, full = 1 | memory, full = 1 |\n|---|---|---|---|---|---|")
    said: list[str] = []
    for preset in options.presets:
        settings = ",".join([str(options.rank), *options.targets])
        more = ["--cpu-time"] * options.cpu_time
        lines, verdicts = report(preset, measure(preset, names, options.rounds, settings, *more))
        print("\n".join(lines), flush=True)
        said += verdicts
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
