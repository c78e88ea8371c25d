"""Loss against time for each optimizer: the preset `tiny` on a text, beside the same model with other settings.

    python benchmarks/optimizers.py --data tinyshakespeare.txt [--steps 2000] [--seeds 0 1 2] [--only adamw fast ...]
    python benchmarks/optimizers.py --draw docs/optimizers.svg benchmarks/results/optimizers-*.txt

The second command draws the curves that the first one printed (`> FILE 2>&1`), means over the seeds; needs matplotlib.

The contenders of a seed take turns, one burst of steps each, so that if the machine slows down, all of them slow down.
Time is that of the steps alone: forward, backward, clipping, update, average. `steps` is the length of the first
contender's run; the others get the fraction of it that their row of `CONTENDERS` says, with a schedule of that length.
The loss is over the whole validation text, the last 10%, in nats a token, with the averaged weights if there is an
average. A character is a token.

The table has a line per contender: means over the seeds, and the range of the losses. `time` is relative to the first
contender. `flops` is what the orthogonalization of Muon multiplies and adds beside a step of the model, 6 N + 12 L C T
per token. Below it is the curve: the loss after each eighth of the run, at the time it took, in seconds.

The two lines at the end are the aims for the preset `fast`: the first contender's loss in half of its time, and 1.85 in
its time, on tinyshakespeare.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from machine import headline

import tinygpt as tg
from tinygpt import GPT, GPTConfig
from tinygpt.data import RandomBatches, split
from tinygpt.optim import Muon, clip_coefficient, grad_norm
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import PRESETS, TrainingConfig, evaluate
from tinygpt.training.optimizers import averaged, make_average, make_optimizer, make_schedule

BURST = 25  # steps of a contender before it is the next one's turn
POINTS = 8  # of the curve
AIM = 1.85
# name: (preset, fraction of the steps, settings besides the preset's)
CONTENDERS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "adamw": ("tiny", 1.0, {}),
    "fast": ("fast", PRESETS["fast"].training["steps"] / PRESETS["tiny"].training["steps"], {}),
    "fast-long": ("fast", 0.55, {}),
    "adamw-4e-3": ("tiny", 1.0, {"lr": 4e-3}),
    "adam": ("tiny", 1.0, {"optimizer": "adam", "lr": 4e-3, "weight_decay": 0.0}),
    "lion": ("tiny", 1.0, {"optimizer": "lion", "lr": 5e-4, "weight_decay": 0.5}),
    "sgd": ("tiny", 1.0, {"optimizer": "sgd", "lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0}),
    "muon": ("tiny", 1.0, {"optimizer": "muon", "lr": 0.02, "adamw_lr": 3e-3, "weight_decay": 0.0}),
}


def newton_schulz_flops(m: int, n: int, steps: int = 5) -> int:
    """Multiplications and additions to make an m x n matrix orthogonal; see `tinygpt/optim/muon.py`."""
    m, n = min(m, n), max(m, n)
    products = 2 * m * m * n + (4 * steps - 3) * m**3 if n >= 2 * m else steps * (2 * m * m * n + m**3)
    return 2 * products


@dataclass
class Contender:
    """A model in training."""

    name: str
    model: GPT
    config: TrainingConfig
    batches: RandomBatches
    seconds: float = 0.0
    step: int = 0
    curve: list[tuple[float, float]] = field(default_factory=list)  # (seconds, loss)

    def __post_init__(self) -> None:
        named = list(self.model.named_parameters())
        self.parameters = [parameter for _, parameter in named]
        self.optimizer, self.schedule = make_optimizer(self.config, named), make_schedule(self.config)
        self.average = make_average(self.config, named)

    def run(self, until: int) -> None:
        """Train up to step `until`."""
        begin = time.perf_counter()
        for step in range(self.step, until):
            loss = self.model.loss(*self.batches.batch(step))
            loss.backward()
            norm = grad_norm(self.parameters)
            loss.item()  # as in a run, which reads every loss
            self.optimizer.lr = self.schedule(step)
            scale = clip_coefficient(norm, self.config.grad_clip) if self.config.grad_clip else 1.0
            self.optimizer.step(grad_scale=scale)
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.update()
        self.step = max(self.step, until)
        self.seconds += time.perf_counter() - begin

    def evaluate(self, tokens: np.ndarray) -> None:
        with averaged(self.average):
            self.curve.append((self.seconds, evaluate(self.model, tokens, 64)))

    def share_of_orthogonalization(self) -> float:
        """Its multiplications and additions, relative to those of the model."""
        config, B = self.model.config, self.config.batch_size
        tokens = B * config.block_size
        model = 6 * sum(p.data.size for p in self.parameters)
        model += 12 * config.n_layer * config.n_embd * config.block_size
        if not isinstance(self.optimizer, Muon):
            return 0.0
        total = 0
        for slot in self.optimizer.slots:
            if "momentum" in slot.state:
                (m, n), parts = slot.parameter.shape, self.optimizer.parts_of(slot)
                total += parts * newton_schulz_flops(m, n // parts)
        return total / (model * tokens)


def make(name: str, steps: int, seed: int, vocab_size: int, train: np.ndarray) -> Contender:
    preset, fraction, settings = CONTENDERS[name]
    config = TrainingConfig(**(PRESETS[preset].training | settings))
    own = max(1, round(fraction * steps))
    warmup = max(1, round(config.warmup_steps * own / config.steps))
    config = replace(config, steps=own, decay_steps=None, warmup_steps=min(warmup, own - 1), seed=seed)
    model = GPT(GPTConfig(vocab_size=vocab_size, **PRESETS[preset].model), seed=seed)
    return Contender(name, model, config, RandomBatches(train, config.batch_size, model.config.block_size, seed))


def race(names: list[str], steps: int, seed: int, tokens: np.ndarray, vocab_size: int) -> list[Contender]:
    """Train all contenders with this seed, in turns."""
    train, validation = split(tokens, TrainingConfig().validation_fraction)
    contenders = [make(name, steps, seed, vocab_size, train) for name in names]
    for point in range(1, POINTS + 1):
        ends = {one.name: round(point * one.config.steps / POINTS) for one in contenders}
        while any(one.step < ends[one.name] for one in contenders):
            for one in contenders:
                one.run(min(one.step + BURST, ends[one.name]))
        for one in contenders:
            one.evaluate(validation)
            seconds, loss = one.curve[-1]
            print(f"seed {seed}, {one.name}: step {one.step}, {seconds:.1f} s, loss {loss:.4f}", file=sys.stderr)
    return contenders


def table(races: list[list[Contender]]) -> list[str]:
    """The lines of the table and of the curves."""
    lines = [
        "| contender | steps | batch | ms a step | s | time | loss | range | flops |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    curves = ["", "| contender | " + " | ".join(f"{i}/{POINTS}" for i in range(1, POINTS + 1)) + " |"]
    curves.append("|---" * (POINTS + 1) + "|")
    for runs in zip(*races, strict=True):
        one, losses = runs[0], [run.curve[-1][1] for run in runs]
        seconds = statistics.mean(run.seconds for run in runs)
        ratio = statistics.mean(run.seconds / every[0].seconds for run, every in zip(runs, races, strict=True))
        lines.append(
            f"| {one.name} | {one.step} | {one.config.batch_size} | {1e3 * seconds / one.step:.1f} | {seconds:.1f} "
            f"| {ratio:.2f} | {statistics.mean(losses):.4f} | {min(losses):.4f} to {max(losses):.4f} "
            f"| {one.share_of_orthogonalization():.0%} |"
        )
        points = [list(zip(*point, strict=True)) for point in zip(*(run.curve for run in runs), strict=True)]
        cells = [f"{statistics.mean(loss):.3f} at {statistics.mean(at):.0f} s" for at, loss in points]
        curves.append(f"| {one.name} | {' | '.join(cells)} |")
    return lines + curves


def verdicts(races: list[list[Contender]]) -> list[str]:
    """Whether the preset `fast` and its longer run meet the aims."""
    found = {run.name: [every[i] for every in races] for i, run in enumerate(races[0])}
    first, lines = [every[0] for every in races], []
    loss = statistics.mean(run.curve[-1][1] for run in first)
    for name, share, aim in (("fast", 0.5, loss), ("fast-long", 1.0, AIM)):
        if name in found:
            runs = found[name]
            ratio = statistics.mean(run.seconds / other.seconds for run, other in zip(runs, first, strict=True))
            reached = statistics.mean(run.curve[-1][1] for run in runs)
            met = "met" if ratio <= share and reached <= aim else "not met"
            lines.append(f"- {met}: {name}: {reached:.4f} (aim {aim:.4f}) in {ratio:.2f} of the time (aim {share})")
    return lines


def curves_in(texts: list[str]) -> dict[str, list[tuple[float, float]]]:
    """The curves that runs printed, name -> [(seconds, loss), ...], means over the seeds. A later text wins."""
    found: dict[str, list[tuple[float, float]]] = {}
    for text in texts:
        points: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for name, step, seconds, loss in re.findall(r"^seed \d+, (\S+): step (\d+), (\S+) s, loss (\S+)$", text, re.M):
            points.setdefault((name, int(step)), []).append((float(seconds), float(loss)))
        found |= {name: [] for name, _ in points}
        for (name, _), each in sorted(points.items(), key=lambda item: item[0][1]):
            seconds, losses = zip(*each, strict=True)
            found[name].append((statistics.mean(seconds), statistics.mean(losses)))
    return found


def draw(path: Path, curves: dict[str, list[tuple[float, float]]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "tinygpt", "svg.fonttype": "none", "font.size": 10}
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker=".", label=name, linewidth=2 if name.startswith("fast") else 1)
    axes.set(xlabel="seconds of training", ylabel="loss on the validation text (nats a character)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FILE", help="a text in UTF-8")
    parser.add_argument("--steps", type=int, default=PRESETS["tiny"].training["steps"], help="of the first contender")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    words = "draw the curves that runs printed to each FILE"
    parser.add_argument("--draw", type=Path, nargs="+", metavar=("PICTURE", "FILE"), help=words)
    options = parser.parse_args()
    if options.draw:
        return draw(options.draw[0], curves_in([path.read_text(encoding="utf-8") for path in options.draw[1:]]))
    if options.data is None:
        parser.error("give the text to train on, --data FILE")
    text = options.data.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.from_text(text)
    tokens = np.asarray(tokenizer.encode(text), dtype=np.uint16)
    print(headline())
    print(f"{options.data.name}: {len(tokens):,} characters; tinygpt {tg.__version__}; seeds {options.seeds}\n")
    races = [race(options.only, options.steps, seed, tokens, tokenizer.vocab_size) for seed in options.seeds]
    print("\n".join(["", *table(races), "", *verdicts(races)]))


if __name__ == "__main__":
    main()
