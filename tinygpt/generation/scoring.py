"""How likely a text is under a model.

    found = log_likelihood(model, tokenizer.encode(" Paris"), context=tokenizer.encode("The capital of France is"))
    found.total, found.log_probs                  # the sum, and each token's natural logarithm
    perplexity(model, tokens, stride=512)         # of a file of any length

Windows. A model reads at most block_size tokens, so a longer text is scored in windows: window number k reads the
tokens from k * stride on, `window` of them, and predicts the one after each. It scores only those that no window before
it has scored: the first window all of its predictions, each later one its last `stride`. So every token of the text but
the first is scored exactly once, from at least window - stride + 1 tokens before it (or all there are). stride = window
is the cheapest, and is the loss that `tinygpt.training.evaluate` computes; a smaller stride gives the tokens more
context and takes window / stride times as long.

This is the sliding window of the Hugging Face guide "Perplexity of fixed-length models"; its `max_length` counts the
last token that is predicted too, and so is one more than the `window` here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backends, console
from ..checks import check_tokens, whole_number
from ..errors import UsageError
from ..graph import no_grad
from ..language_model import LanguageModel
from ..nn.known import keeps
from ..ops.cross_entropy import IGNORE_INDEX, cross_entropy_forward
from ..ops.linear_cross_entropy import blocks
from ..token_ids import checked_logits


@dataclass(frozen=True)
class LogLikelihood:
    """log_probs (N,) float64: the natural logarithm of each token's probability, given all those before it."""

    log_probs: np.ndarray

    @property
    def total(self) -> float:
        """The logarithm of the probability of them all."""
        return float(self.log_probs.sum())

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.log_probs.mean()))


@dataclass(frozen=True)
class TextScore:
    """What a text costs: `total` nats for `count` tokens."""

    total: float
    count: int

    @property
    def loss(self) -> float:
        """The mean cross-entropy, in nats per token."""
        return self.total / self.count

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


def log_likelihood(model: LanguageModel, ids: Any, context: Any = (), stride: int | None = None) -> LogLikelihood:
    """The log-probability of each token of `ids`, (N,) integers, given `context`, (M,) integers, and those before it.

    Without a context the first token has nothing to be predicted from: then there are N - 1 log-probabilities.
    What does not fit the block: of a long context the last tokens are read; `ids` longer than the block are scored
    in windows with `stride` (default: half the block).
    Raises UsageError when nothing is left to score, RangeError, ShapeError or DtypeError for ids that are none.
    """
    where, window = "log_likelihood", model.config.block_size
    ids, context = check_tokens(ids), check_tokens(context)
    text = np.concatenate([part.astype(np.int64) for part in (context, ids)])  # (M + N,)
    count = len(ids) if len(context) else len(ids) - 1
    if count < 1:
        raise UsageError(f"{where}: there is nothing to score: give two tokens or more, or a context and at least one")
    model.check_ids(text[None], any_length=True)
    step = _stride(where, max(1, window // 2) if stride is None else stride, window)
    text = text[-(window + (1 if count <= window else count)) :]  # in the first case one window reads it all
    parts = [_log_probs(model, inputs, targets) for inputs, targets in Windows(text, window, step, batch_size=1)]
    return LogLikelihood(np.concatenate(parts)[-count:])


def score(
    model: LanguageModel,
    tokens: Any,
    stride: int | None = None,
    window: int | None = None,
    batch_size: int = 4,
    progress: bool = False,
) -> TextScore:
    """The whole of `tokens`, (N,) integers, memory-mapped or not: what it costs the model, as the module explains.

    stride: 1 .. window; None: window. window: at most block_size, which None means. batch_size: windows at a time.
    progress: show a bar on a terminal. Raises UsageError, RangeError, DtypeError, ShapeError.
    """
    where, block = "perplexity", model.config.block_size
    window = block if window is None else whole_number(where, "window", window)
    if window > block:
        raise UsageError(f"{where}: a window of {window} tokens is longer than this model's block_size of {block}")
    batches: Any = Windows(check_tokens(tokens), window, _stride(where, stride, window), batch_size)
    total, count = 0.0, 0
    for inputs, targets in console.bar(batches, "scoring", progress):
        log_probs = _log_probs(model, inputs, targets)
        total, count = total - float(log_probs.sum()), count + len(log_probs)
    return TextScore(total, count)


def perplexity(model: LanguageModel, tokens: Any, stride: int | None = None, **options: Any) -> float:
    """exp of the mean cross-entropy per token of a text; the arguments are those of `score`."""
    return score(model, tokens, stride, **options).perplexity


class Windows:
    """Batches `(inputs, targets)`, int64 (B, window): a row is a window; targets that it does not score are -100."""

    def __init__(self, tokens: np.ndarray, window: int, stride: int, batch_size: int) -> None:
        self.tokens, self.window, self.stride = tokens, window, stride
        self.batch_size = whole_number("perplexity", "batch_size", batch_size)
        if len(tokens) < 2:
            raise UsageError(f"perplexity: a text of {len(tokens)} tokens has none to predict: it needs two or more")
        targets = len(tokens) - 1
        self.count = 1 + max(0, -(-(targets - window) // stride))

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, self.count, self.batch_size):
            rows = [self.row(index) for index in range(first, min(first + self.batch_size, self.count))]
            width = max(len(inputs) for inputs, _ in rows)
            inputs = np.zeros((len(rows), width), np.int64)
            targets = np.full((len(rows), width), IGNORE_INDEX, np.int64)
            for row, (read, predicted) in enumerate(rows):
                inputs[row, : len(read)], targets[row, : len(predicted)] = read, predicted
            yield inputs, targets

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Window number `index`: (inputs, targets) of the same length, shorter than `window` at the text's end."""
        begin = index * self.stride
        tokens = np.asarray(self.tokens[begin : begin + self.window + 1]).astype(np.int64)
        targets = tokens[1:].copy()
        if index:
            targets[: self.window - self.stride] = IGNORE_INDEX
        return tokens[:-1], targets


def _stride(where: str, stride: int | None, window: int) -> int:
    step = window if stride is None else whole_number(where, "stride", stride)
    if step > window:
        raise UsageError(f"{where}: a stride of {step} tokens would leave some out: a window predicts {window}")
    return step


def _log_probs(model: LanguageModel, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """inputs, targets (B, T) -> (N,) float64, of the targets that are scored, row after row."""
    places = np.flatnonzero(targets.reshape(-1) != IGNORE_INDEX)  # (N,)
    scored = targets.reshape(-1)[places]  # (N,)
    model.check_ids(scored[None], any_length=True)  # the inputs are checked where they are used
    found = []
    with no_grad(), model.evaluating(), model.compute_in("float32"):
        rows, to_logits = _rows(model, inputs, places)
        for part in blocks(len(places), model.config.vocab_size, rows.dtype.itemsize):
            logits = to_logits(rows[part]).data  # (n, V): never those of all rows at once, unless `forward` makes them
            own = backends.move(scored[part], backends.name_of(logits))
            losses, _ = cross_entropy_forward(logits, own, IGNORE_INDEX)
            found.append(backends.move(losses, "numpy").astype(np.float64))
    return -np.concatenate(found)


def _rows(model: LanguageModel, inputs: np.ndarray, places: np.ndarray) -> tuple[Any, Callable[[Any], Any]]:
    """What the model has at the positions `places` (N,), and the function that makes logits of it."""
    parts = keeps(model, LanguageModel, "forward")  # else a subclass makes its logits in another way
    found = model.hidden(inputs) if parts else checked_logits(model, inputs)  # (B, T, C) or (B, T, V)
    return found.reshape(-1, found.shape[-1])[places], model.head if parts else lambda logits: logits
