"""An LSTM against a GPT: the same number of parameters, the same text, the same batches.

    python examples/lstm_against_gpt.py --data tinyshakespeare.txt          # 4 minutes on one core
    python examples/lstm_against_gpt.py --data my_text.txt --steps 50 --rates 0.01 --seeds 0

The LSTM is written here from tinygpt's public operations: products, sigmoid, tanh. Both models read windows of 64
characters and predict the next character at every position; neither sees anything before its window. Each contender
is trained at every learning rate with the first seed. The rate with the lowest validation loss is then used for the
other seeds. Validation is the last tenth of the text, in nats per character.

What is printed: a line for each run, with its processor time; then a table, and the loss by position in the window,
which shows what a model gains from having read more. The page docs/lstm_against_gpt.md discusses a run.

Source: Hochreiter, Schmidhuber, "Long Short-Term Memory", Neural Computation 1997; the forget gate is from Gers,
Schmidhuber, Cummins, "Learning to Forget", 2000, and its bias begins at 1 (Jozefowicz, Zaremba, Sutskever, "An
Empirical Exploration of Recurrent Network Architectures", 2015).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinygpt as tg
from tinygpt.cli import exit_with
from tinygpt.errors import UsageError

BATCH, TIME = 32, 64
EVALUATED = 40  # windows of the validation text, times BATCH
POSITIONS = ((0, 1), (1, 4), (4, 16), (16, 32), (32, 64))  # for the loss by position


class LSTMLayer(tg.nn.Module):
    """One layer, C channels in and out: a cell c that is kept or forgotten by gates, and its output h."""

    def __init__(self, C: int, rng: np.random.Generator) -> None:
        std = 1 / math.sqrt(C)
        self.input = tg.nn.Parameter((std * rng.standard_normal((C, 4 * C))).astype(np.float32))
        self.hidden = tg.nn.Parameter((std * rng.standard_normal((C, 4 * C))).astype(np.float32))
        bias = np.zeros(4 * C, np.float32)
        bias[C : 2 * C] = 1  # the forget gate begins open
        self.bias = tg.nn.Parameter(bias)

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        """x (T, B, C) -> h (T, B, C). The gates are in the order input, forget, output, candidate."""
        _, B, C = x.shape
        h = c = tg.zeros(B, C)
        outputs = []
        for a in tg.ops.split(x @ self.input + self.bias, 1):  # T times (1, B, 4C): one product for all positions
            gates, candidate = tg.ops.split(a[0] + h @ self.hidden, [3 * C, C], axis=1)
            i, f, o = tg.ops.split(gates.sigmoid(), C, axis=1)
            c = f * c + i * candidate.tanh()  # (B, C)
            h = o * c.tanh()
            outputs.append(h)
        return tg.stack(outputs)


class LSTM(tg.nn.Module):
    """Embedding, layers, and the embedding again as the head, as in a GPT."""

    def __init__(self, vocab_size: int, C: int, layers: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.embedding = tg.nn.Parameter((0.1 * rng.standard_normal((vocab_size, C))).astype(np.float32))
        self.layers = [LSTMLayer(C, rng) for _ in range(layers)]

    def forward(self, ids: np.ndarray) -> tg.Tensor:
        """ids (B, T) -> logits (B, T, V)."""
        x = tg.ops.embedding(self.embedding, np.ascontiguousarray(ids.T))  # (T, B, C)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(0, 1) @ self.embedding.transpose()


def gpt(vocab_size: int, seed: int) -> tg.nn.Module:
    return tg.GPT(tg.GPTConfig(vocab_size, TIME, n_layer=2, n_head=4, n_embd=64), seed=seed)


def lstm(vocab_size: int, seed: int) -> tg.nn.Module:
    return LSTM(vocab_size, C=80, layers=2, seed=seed)


CONTENDERS: dict[str, Callable[[int, int], tg.nn.Module]] = {"GPT": gpt, "LSTM": lstm}


def loss_of(model: tg.nn.Module, inputs: np.ndarray, targets: np.ndarray) -> tg.Tensor:
    logits = model(inputs)
    return tg.ops.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


@dataclass(frozen=True)
class Run:
    """What a run came to. by_position: the loss at each position of a window, (T,)."""

    name: str
    seed: int
    lr: float
    loss: float
    by_position: np.ndarray
    seconds: float  # of the processor, for training
    parameters: int

    def order(self) -> float:
        """What the best run has least of. A run that diverged is never the best."""
        return math.inf if math.isnan(self.loss) else self.loss


def train(name: str, seed: int, lr: float, text: tuple[np.ndarray, np.ndarray, int], steps: int) -> Run:
    tokens, validation, vocab_size = text
    model = CONTENDERS[name](vocab_size, seed)
    optimizer = tg.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = tg.optim.schedules.Cosine(lr, lr / 10, warmup_steps=steps // 20, total_steps=steps)
    batches = tg.data.RandomBatches(tokens, batch_size=BATCH, block_size=TIME, seed=seed)
    start = time.process_time()
    for step in range(steps):
        loss_of(model, *batches.batch(step)).backward()
        tg.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.lr = schedule(step)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - start
    by_position = losses(model, validation)
    count = sum(parameter.data.size for parameter in model.parameters())
    run = Run(name, seed, lr, float(by_position.mean()), by_position, seconds, count)
    print(f"{name}, seed {seed}, rate {lr:g}: loss {run.loss:.4f}, {seconds:.0f} s of processor time", flush=True)
    return run


def losses(model: tg.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """The mean loss at each position of the same windows of the validation text for every model: (T,)."""
    batches = tg.data.RandomBatches(tokens, batch_size=BATCH, block_size=TIME, seed=0)
    total = np.zeros(TIME)
    model.eval()
    with tg.no_grad():
        for index in range(EVALUATED):
            inputs, targets = batches.batch(index)
            log_probs = model(inputs).log_softmax().data  # (B, T, V)
            total -= np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0].mean(axis=0)
    return total / EVALUATED


def table(runs: list[Run]) -> list[str]:
    """Of each contender: mean and range over the seeds at its best rate, and the loss by position."""
    first = runs[0].seed
    lines = ["| contender | parameters | rate | loss | range | seconds |", "|---|---|---|---|---|---|"]
    headings = [f"{a + 1} to {b}" if b > a + 1 else f"{b}" for a, b in POSITIONS]
    positions = [f"| contender | {' | '.join(headings)} |", "|---" * 6 + "|"]
    for name in CONTENDERS:
        of = [run for run in runs if run.name == name]
        lr = min((run for run in of if run.seed == first), key=Run.order).lr
        best = [run for run in of if run.lr == lr]
        values = [run.loss for run in best]
        mean, seconds = statistics.mean(values), statistics.mean(run.seconds for run in best)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        lines.append(f"| {name} | {best[0].parameters:,} | {lr:g} | {mean:.3f} | {spread} | {seconds:.0f} |")
        by_position = np.mean([run.by_position for run in best], axis=0)
        positions.append(f"| {name} | {' | '.join(f'{by_position[a:b].mean():.2f}' for a, b in POSITIONS)} |")
    return [*lines, "", *positions]


def read(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    text = "".join(tg.data.read_text(path))
    tokenizer = tg.tokenizers.CharTokenizer.from_text(text)
    tokens = np.array(tokenizer.encode(text))
    if len(tokens) < 10 * (TIME + 1):
        raise UsageError(f"{path} has {len(tokens)} characters; give a text of at least {10 * (TIME + 1)}")
    return *tg.data.split(tokens, 0.1), tokenizer.vocab_size


def main(arguments: Any = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a UTF-8 text (default: Shakespeare)")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args(arguments)
    if options.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {options.steps}")
    text = read(options.data or tg.data.shakespeare().path)
    print(f"{options.steps} steps of {BATCH} windows of {TIME} characters; tinygpt {tg.__version__}", flush=True)
    runs = []
    first, *others = options.seeds
    for name in CONTENDERS:
        tried = [train(name, first, lr, text, options.steps) for lr in options.rates]
        best = min(tried, key=Run.order)
        runs += [*tried, *(train(name, seed, best.lr, text, options.steps) for seed in others)]
    print("", *table(runs), sep="\n")
    return 0


if __name__ == "__main__":
    exit_with(main)
