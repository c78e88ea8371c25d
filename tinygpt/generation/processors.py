"""Logits processors: adjust the scores of the next token given the tokens of the row so far.

A processor is a pure function `(rows, logits) -> logits`:

    rows      `Rows`: a sequence of R arrays, the ids of each row so far, including the prompt and without padding;
              rows.new_tokens is the number of tokens generated so far
    logits    (R, V) float64; a token that must not be chosen gets -inf

It returns new logits of the same shape and does not modify its arguments. `history_processors` returns those that a
config enables, in transformers' order. User-defined processors run after them, and `truncation` (temperature, top_k,
top_p, ...) last. The results equal those of the corresponding classes in transformers, with one difference: there the
padding of a left-padded row counts towards min_length and can match n-grams and bad words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DtypeError, ShapeError, UsageError
from .options import WHERE, GenerationConfig, as_tuple


class Rows(Sequence[np.ndarray]):
    """The ids of each row so far, (length,) int64 each, and the number of generated ones."""

    def __init__(self, rows: Sequence[Any], new_tokens: int = 0) -> None:
        self._rows = [np.asarray(row) for row in rows]
        self.new_tokens = new_tokens

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]


Processor = Callable[[Rows, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Make tokens that already occur in a row less likely: divide a positive score by `penalty`, multiply a negative
    one by it. A token is penalised once, however often it occurs. A penalty below 1 encourages repetition.

    Source: Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019,
    section 4.1. The paper divides whatever the sign, which would raise negative scores.
    """

    penalty: float

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        for row, ids in zip(logits, rows, strict=True):
            ids = ids[ids < len(row)]  # a prompt may contain ids that can't be chosen
            scores = row[ids]
            row[ids] = np.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return logits


@dataclass(frozen=True)
class NoRepeatNGram:
    """Forbid every token that would repeat an n-gram of `size` tokens in the row, prompt included.

    Source: Paulus, Xiong, Socher, "A Deep Reinforced Model for Abstractive Summarization", 2017, section 2.5.
    """

    size: int

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        for row, ids in zip(logits, rows, strict=True):
            if len(ids) >= self.size:
                ngrams = np.lib.stride_tricks.sliding_window_view(ids, self.size)  # (length - size + 1, size)
                prefix = ids[len(ids) - self.size + 1 :]  # the next token would complete this n-gram
                banned = ngrams[(ngrams[:, :-1] == prefix).all(axis=1), -1]
                row[banned[banned < len(row)]] = -np.inf
        return logits


@dataclass(frozen=True)
class BadWords:
    """Forbid the sequences in `words`: the last token of one gets -inf where a row ends with the tokens before it.

    A sequence that is a single eos token is ignored: eos has its own options.
    """

    words: tuple[tuple[int, ...], ...]
    eos: tuple[int, ...] = ()

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        for *prefix, last in self.words:
            if not prefix:
                if last not in self.eos:
                    logits[:, last] = -np.inf
                continue
            for row, ids in zip(logits, rows, strict=True):
                if len(ids) >= len(prefix) and (ids[-len(prefix) :] == prefix).all():
                    row[last] = -np.inf
        return logits


@dataclass(frozen=True)
class MinLength:
    """Forbid eos tokens in rows of fewer than `length` tokens, prompt included."""

    length: int
    eos: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        short = [r for r, ids in enumerate(rows) if len(ids) < self.length]
        return _forbid(logits, short, self.eos)


@dataclass(frozen=True)
class MinNewTokens:
    """Forbid eos tokens until `count` tokens have been generated."""

    count: int
    eos: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        return _forbid(logits, range(len(rows)) if rows.new_tokens < self.count else (), self.eos)


@dataclass(frozen=True)
class SuppressTokens:
    """Forbid these tokens."""

    tokens: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        return _forbid(logits, range(len(rows)), self.tokens)


@dataclass(frozen=True)
class BeginSuppressTokens:
    """Forbid these tokens as the first generated token."""

    tokens: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        return _forbid(logits, range(len(rows)) if rows.new_tokens == 0 else (), self.tokens)


def _forbid(logits: np.ndarray, rows: Sequence[int], tokens: tuple[int, ...]) -> np.ndarray:
    if len(rows):
        logits = logits.copy()
        logits[np.ix_(rows, tokens)] = -np.inf
    return logits


def history_processors(config: GenerationConfig) -> list[Processor]:
    """The processors that `config` enables, in transformers' order. Options without effect add none."""
    eos, found = config.eos_ids, list[Processor]()
    if config.repetition_penalty != 1:
        found.append(RepetitionPenalty(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        found.append(NoRepeatNGram(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        found.append(BadWords(as_tuple(config.bad_words_ids), eos))
    if eos and config.min_length and not config.min_new_tokens:
        found.append(MinLength(config.min_length, eos))
    if eos and config.min_new_tokens:
        found.append(MinNewTokens(config.min_new_tokens, eos))
    if config.suppress_tokens:
        found.append(SuppressTokens(as_tuple(config.suppress_tokens)))
    if config.begin_suppress_tokens:
        found.append(BeginSuppressTokens(as_tuple(config.begin_suppress_tokens)))
    return found


def user_processors(processors: Processor | Sequence[Processor]) -> list[Processor]:
    """User-defined processors as a list, each wrapped in a check of its result."""
    if callable(processors):
        processors = [processors]
    if not isinstance(processors, Sequence) or not all(callable(processor) for processor in processors):
        raise DtypeError(f"{WHERE}: logits_processor must be a list of functions (rows, logits), not {processors!r}")
    return [_checked(processor) for processor in processors]


def _checked(processor: Processor) -> Processor:
    name = getattr(processor, "__name__", type(processor).__name__)

    def call(rows: Rows, logits: np.ndarray) -> np.ndarray:
        shape = logits.shape
        result = np.asarray(processor(rows, logits.copy()))
        if result.shape != shape:
            raise ShapeError(f"{WHERE}: the logits processor {name} must return logits {shape}, not {result.shape}")
        if result.dtype.kind not in "fiu":
            raise DtypeError(f"{WHERE}: the logits processor {name} must return numbers, not {result.dtype}")
        result = result.astype(np.float64)
        if not (result < np.inf).all():  # nan < inf is False too
            raise UsageError(f"{WHERE}: the logits processor {name} returned nan or +inf")
        return result

    return call
