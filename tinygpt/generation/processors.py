"""Logits processors: what is known of the rows so far changes the scores of their next tokens.

A processor is a pure function `(rows, logits) -> logits`:

    rows      `Rows`: a sequence of R arrays, the ids of each row so far, prompt included and without padding;
              rows.new_tokens says how many of them each row has generated
    logits    (R, V) float64; a token that must not be chosen gets -inf

It returns new logits of the same shape and leaves its arguments alone. `history_processors` lists those that a config
asks for, in transformers' order; a user's own follow them, and what thins the distribution before a token is drawn
(`truncation`) comes last. The arrays that come out equal those of transformers' classes of the same purpose, with
one difference: there a left-padded row's padding counts in min_length, and may take part in n-grams and bad words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DtypeError, ShapeError, UsageError
from .options import WHERE, GenerationConfig, as_tuple


class Rows(Sequence[np.ndarray]):
    """The ids of each row so far, (length,) int64 each, and the number of them that were generated."""

    def __init__(self, rows: Sequence[Any], new_tokens: int = 0) -> None:
        self._rows = [np.asarray(row) for row in rows]
        self.new_tokens = new_tokens

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]


Processor = Callable[[Any, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Tokens that a row already has become less likely: a positive score is divided by `penalty`, a negative one
    multiplied. However often a token occurs, it is penalised once. A penalty below 1 rewards repetition.

    Source: Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019,
    section 4.1 (which divides whatever the sign; multiplying the negative ones is what makes it a penalty).
    """

    penalty: float

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        for row, ids in zip(logits, rows, strict=True):
            ids = ids[ids < len(row)]  # a prompt may hold ids that can't be chosen
            scores = row[ids]
            row[ids] = np.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return logits


@dataclass(frozen=True)
class NoRepeatNGram:
    """No sequence of `size` tokens occurs twice in a row (prompt included): the token that would repeat one gets -inf.

    Source: Paulus, Xiong, Socher, "A Deep Reinforced Model for Abstractive Summarization", 2017, section 2.5.
    """

    size: int

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        for row, ids in zip(logits, rows, strict=True):
            if len(ids) >= self.size:
                ngrams = np.lib.stride_tricks.sliding_window_view(ids, self.size)  # (length - size + 1, size)
                begun = ids[len(ids) - self.size + 1 :]  # the next token would complete these to an n-gram
                banned = ngrams[(ngrams[:, :-1] == begun).all(axis=1), -1]
                row[banned[banned < len(row)]] = -np.inf
        return logits


@dataclass(frozen=True)
class BadWords:
    """The last token of each sequence in `words` gets -inf where a row ends with the tokens before it.

    A sequence that is one eos token alone is passed over: eos has options of its own.
    """

    words: tuple[tuple[int, ...], ...]
    eos: tuple[int, ...] = ()

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        for *begun, last in self.words:
            if not begun:
                if last not in self.eos:
                    logits[:, last] = -np.inf
                continue
            for row, ids in zip(logits, rows, strict=True):
                if len(ids) >= len(begun) and (ids[-len(begun) :] == begun).all():
                    row[last] = -np.inf
        return logits


@dataclass(frozen=True)
class MinLength:
    """No eos token in a row of fewer than `length` tokens, prompt included."""

    length: int
    eos: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        short = [r for r, ids in enumerate(rows) if len(ids) < self.length]
        return _forbid(logits, short, self.eos)


@dataclass(frozen=True)
class MinNewTokens:
    """No eos token before `count` tokens are generated."""

    count: int
    eos: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        return _forbid(logits, range(len(rows)) if rows.new_tokens < self.count else (), self.eos)


@dataclass(frozen=True)
class SuppressTokens:
    """These tokens are never chosen."""

    tokens: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        return _forbid(logits, range(len(rows)), self.tokens)


@dataclass(frozen=True)
class BeginSuppressTokens:
    """These tokens are not chosen first."""

    tokens: tuple[int, ...]

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        return _forbid(logits, range(len(rows)) if rows.new_tokens == 0 else (), self.tokens)


def _forbid(logits: np.ndarray, rows: Sequence[int], tokens: tuple[int, ...]) -> np.ndarray:
    if len(rows):
        logits = logits.copy()
        logits[np.ix_(rows, tokens)] = -np.inf
    return logits


def history_processors(config: GenerationConfig) -> list[Processor]:
    """The processors that `config` asks for, in transformers' order. Options that do nothing make none."""
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


def user_processors(processors: Any) -> list[Processor]:
    """A user's own processors as a list, each with a check of what it returns."""
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
        if not (result < np.inf).all():  # nan is not below inf either
            raise UsageError(f"{WHERE}: the logits processor {name} returned nan or +inf")
        return result

    return call
