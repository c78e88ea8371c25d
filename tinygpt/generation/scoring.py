"""How likely a text is under a model.

    found = log_likelihood(model, tokenizer.encode(" Paris"), context=tokenizer.encode("The capital of France is"))
    found.total, found.log_probs                  # the sum, and each token's natural log-probability
    perplexity(model, tokens, stride=512)         # of a text of any length

Windows. A model reads at most block_size tokens, so a longer text is scored in overlapping windows. Window k reads
`window` tokens, starting at token k * stride, and predicts the token after each. Each prediction is scored only once:
the first window scores all of its predictions, and each later window only its last `stride`. So every token but the
first is scored exactly once, given at least window - stride + 1 tokens before it (or all there are). stride = window is
cheapest, and gives the loss that `tinygpt.training.evaluate` computes; a smaller stride gives the tokens more context
and takes window / stride times as long.

This is the sliding window of the Hugging Face guide "Perplexity of fixed-length models". `max_length` there includes
the last predicted token, so it is `window` + 1.
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
from ..typing import Ids


@dataclass(frozen=True)
class LogLikelihood:
    """log_probs (N,) float64: the natural logarithm of each token's probability, given all those before it.

    greedy (N,): whether each token was the likeliest one, so that greedy decoding would write it; None: not asked for.
    """

    log_probs: np.ndarray
    greedy: np.ndarray | None = None

    @property
    def total(self) -> float:
        """The log-probability of the whole sequence."""
        return float(self.log_probs.sum())

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.log_probs.mean()))


@dataclass(frozen=True)
class TextScore:
    """The cross-entropy of a text: `total` nats over `count` tokens."""

    total: float
    count: int

    @property
    def loss(self) -> float:
        """The mean cross-entropy, in nats per token."""
        return self.total / self.count

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


def log_likelihood(
    model: LanguageModel, ids: Ids, context: Ids = (), stride: int | None = None, greedy: bool = False
) -> LogLikelihood:
    """The log-probability of each token of `ids`, (N,) integers, given `context`, (M,) integers, and the ids before it.

    Without a context, the first token can't be predicted, so there are N - 1 log-probabilities.
    If the two do not fit in the block, only the last tokens of the context are read, and `ids` longer than the block
    are scored in windows with this `stride` (default: half the block). greedy: also tell which tokens are likeliest.
    Raises UsageError if there is nothing to score, and RangeError, ShapeError or DtypeError for invalid ids.
    """
    where, window = "log_likelihood", model.config.block_size
    ids, context = check_tokens(ids), check_tokens(context)
    text = np.concatenate([part.astype(np.int64) for part in (context, ids)])  # (M + N,)
    count = len(ids) if len(context) else len(ids) - 1
    if count < 1:
        raise UsageError(f"{where}: there is nothing to score: give at least two tokens, or a context and one token")
    model.check_ids(text[None], any_length=True)
    step = _stride(where, max(1, window // 2) if stride is None else stride, window)
    text = text[-(window + (1 if count <= window else count)) :]  # if count <= window, it fits in one window
    hits: list[np.ndarray] | None = [] if greedy else None
    parts = [_log_probs(model, inputs, targets, hits) for inputs, targets in Windows(text, window, step, batch_size=1)]
    return LogLikelihood(np.concatenate(parts)[-count:], None if hits is None else np.concatenate(hits)[-count:])


def score(
    model: LanguageModel,
    tokens: Ids,
    stride: int | None = None,
    window: int | None = None,
    batch_size: int = 4,
    progress: bool = False,
) -> TextScore:
    """The cross-entropy of all of `tokens`, (N,) integers, memory-mapped or not, in windows as explained above.

    stride: 1 .. window; None: window. window: 1 .. block_size; None: block_size. batch_size: windows per forward pass.
    progress: show a progress bar on a terminal. Raises UsageError, RangeError, DtypeError, ShapeError.
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


def perplexity(model: LanguageModel, tokens: Ids, stride: int | None = None, **options: Any) -> float:
    """exp of the mean cross-entropy per token of a text. Takes the arguments of `score`."""
    return score(model, tokens, stride, **options).perplexity


class Windows:
    """Batches `(inputs, targets)`, int64 (B, window): each row is one window; targets not to be scored are -100."""

    def __init__(self, tokens: np.ndarray, window: int, stride: int, batch_size: int) -> None:
        self.tokens, self.window, self.stride = tokens, window, stride
        self.batch_size = whole_number("perplexity", "batch_size", batch_size)
        if len(tokens) < 2:
            raise UsageError(f"perplexity: a text needs at least two tokens to predict one, not {len(tokens)}")
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
        """Window `index`: (inputs, targets) of equal length, shorter than `window` at the end of the text."""
        begin = index * self.stride
        tokens = np.asarray(self.tokens[begin : begin + self.window + 1]).astype(np.int64)
        targets = tokens[1:].copy()
        if index:
            targets[: self.window - self.stride] = IGNORE_INDEX
        return tokens[:-1], targets


def _stride(where: str, stride: int | None, window: int) -> int:
    step = window if stride is None else whole_number(where, "stride", stride)
    if step > window:
        raise UsageError(f"{where}: stride must be at most window={window}, not {step}, which would skip tokens")
    return step


def _log_probs(
    model: LanguageModel, inputs: np.ndarray, targets: np.ndarray, hits: list[np.ndarray] | None = None
) -> np.ndarray:
    """inputs, targets (B, T) -> (N,) float64, the log-probabilities of the scored targets, in row order.

    hits: if given, is extended by whether each of these targets has the largest logit.
    """
    positions = np.flatnonzero(targets.reshape(-1) != IGNORE_INDEX)  # (N,)
    scored = targets.reshape(-1)[positions]  # (N,)
    model.check_ids(scored[None], any_length=True)  # `hidden` checks the inputs
    found = []
    with no_grad(), model.evaluating(), model.compute_in("float32"):
        rows, to_logits = _rows(model, inputs, positions)
        for part in blocks(len(positions), model.config.vocab_size, rows.dtype.itemsize):
            logits = to_logits(rows[part]).data  # (n, V): in parts, because all logits at once take too much memory
            part_targets = backends.move(scored[part], backends.name_of(logits))
            losses, _ = cross_entropy_forward(logits, part_targets, IGNORE_INDEX)
            found.append(backends.move(losses, "numpy").astype(np.float64))
            if hits is not None:
                hits.append(backends.move(logits.argmax(axis=1), "numpy") == scored[part])
    return -np.concatenate(found)


def _rows(model: LanguageModel, inputs: np.ndarray, positions: np.ndarray) -> tuple[Any, Callable[[Any], Any]]:
    """The model's output at `positions` (N,), and the function that turns it into logits.

    The output is that of `hidden`, or of `forward` if a subclass overrides it; then it is logits already.
    """
    standard = keeps(model, LanguageModel, "forward")
    found = model.hidden(inputs) if standard else checked_logits(model, inputs)  # (B, T, C) or (B, T, V)
    return found.reshape(-1, found.shape[-1])[positions], model.head if standard else lambda logits: logits
