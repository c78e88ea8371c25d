"""Sampling: the next token of each row from the model's logits, the best one or a draw.

Randomness. Row b of step t uses a number that is a pure function of (seed, t, b), made by Philox (`tinygpt.random`).
So a seed fixes the text, and a row does not depend on how many others there are. With one seed for each prompt, its
samples use (that seed, t, 0), (that seed, t, 1), ...: what the prompt would get alone.

Cost. Beside a model's step this should be nothing. Greedy choice without processors is an argmax over the model's own
array; float64 is used for what is left after top_k, which takes a partition instead of a sort; random numbers are made
for many steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import random
from ..errors import UsageError
from .options import WHERE, GenerationConfig
from .processors import Processor, Rows
from .truncation import Temperature, TopK, Truncation, truncations, unnormalized_probs

# Sampling has streams of its own, far from those that weights and dropout masks of the same seed use.
_FIRST_STREAM = 1 << 48
_STEPS_AT_ONCE = 64
_BLOCK = 256


class SampledTokens(NamedTuple):
    """(R,) ids, and where asked for the log-probability of each under the model, and under what it was drawn from.

    alive: (R,) bool, False where every token was ruled out and the id means nothing; None: all are.
    """

    ids: np.ndarray
    log_probs: np.ndarray | None
    processed_log_probs: np.ndarray | None
    alive: np.ndarray | None = None


class TokenSampler:
    """Logits (R, V) in, the next token of each row out: the greatest, or a draw."""

    def __init__(
        self, config: GenerationConfig, processors: Sequence[Processor], numbers: Uniforms | None, details: bool = False
    ) -> None:
        self.config, self.processors, self.numbers, self.details = config, processors, numbers, details
        self.truncations = truncations(config)
        # Dividing by a temperature keeps the order, so the k greatest may be taken first, and from float32.
        self.truncations.sort(key=lambda truncation: not isinstance(truncation, TopK))

    def __call__(self, rows: Rows, logits: np.ndarray, active: np.ndarray) -> SampledTokens:
        """rows and logits are of the rows `active` (R,) among all of the request: they pick the random numbers."""
        check_finite(logits)
        scores = apply_processors(rows, logits[:, : self.config.vocab_size], self.processors)
        alive = scores.max(axis=1) > -np.inf if self.processors else None
        if alive is not None and not alive.all():
            return self._of_those_alive(rows, scores, logits, active, alive)
        return self._sample(rows, scores, logits, active)

    def _of_those_alive(
        self, rows: Rows, scores: np.ndarray, logits: np.ndarray, active: np.ndarray, alive: np.ndarray
    ) -> SampledTokens:
        """Rows at a dead end have no part in it, and change nothing for the others."""
        chosen, R = self._sample(rows, scores[alive], logits[alive], active[alive]), len(alive)
        ids, log_probs = np.zeros(R, np.int64), np.zeros((2, R))
        ids[alive] = chosen.ids
        if not self.details:
            return SampledTokens(ids, None, None, alive)
        log_probs[0, alive], log_probs[1, alive] = chosen.log_probs, chosen.processed_log_probs
        return SampledTokens(ids, log_probs[0], log_probs[1], alive)

    def _sample(self, rows: Rows, scores: np.ndarray, logits: np.ndarray, active: np.ndarray) -> SampledTokens:
        if self.config.greedy:
            ids = scores.argmax(axis=1)
            processed = _log_probs(scores, ids) if self.details else None
        else:
            assert self.numbers is not None
            u = self.numbers(rows.new_tokens)[active]  # (R,)
            drawn = [draw(row, number, self.truncations) for row, number in zip(scores, u, strict=True)]
            ids = np.array([token for token, _ in drawn], dtype=np.int64)
            processed = np.array([log_prob for _, log_prob in drawn])
        return SampledTokens(ids, _log_probs(logits, ids) if self.details else None, processed)


def check_finite(logits: np.ndarray) -> None:
    """Refuse logits that a ruined model makes."""
    if not np.isfinite(logits).all():
        raise UsageError(
            f"{WHERE}: the model's logits are not finite numbers: its weights hold nan or inf, or overflow"
        )


def apply_processors(rows: Rows, logits: np.ndarray, processors: Sequence[Processor]) -> np.ndarray:
    """The processors, one after the other, in float64; the logits themselves where there is none."""
    if not processors:
        return logits
    scores = logits.astype(np.float64)
    for processor in processors:
        scores = processor(rows, scores)
    return scores


def draw(scores: np.ndarray, u: float, truncations: Sequence[Temperature | Truncation] = ()) -> tuple[int, float]:
    """A token by inversion, the first whose cumulative probability exceeds u in [0, 1), and its log-probability.

    scores: (V,), of any floating type. Only what the truncations leave is looked at. A token of probability 0 is
    never drawn: the sum does not rise there.
    """
    given, ids = scores, None  # ids: of the candidates; None: all
    for truncation in truncations:
        if isinstance(truncation, Temperature):
            scores = truncation(None, scores)
        else:
            kept = np.flatnonzero(truncation.keep(scores))
            ids = kept if ids is None else ids[kept]
            scores = scores[kept]
    own = scores is not given and scores.dtype == np.float64  # then it may be overwritten
    index, log_prob = inverse_cdf(unnormalized_probs(scores, out=scores if own else None), u)
    return (index if ids is None else int(ids[index])), log_prob


def inverse_cdf(weights: np.ndarray, u: float) -> tuple[int, float]:
    """The first index whose cumulative weight exceeds u in [0, 1) times their sum, and the log of its share.

    Sums of blocks come first, and only the block in which u falls is added up one by one: a sum in order can't be
    vectorised, and over a whole vocabulary would take as long as everything else together.
    """
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)))
    total = blocks[-1]
    block = int(np.searchsorted(blocks, u * total, side="right"))  # u <= 1 - 2**-53: u * total stays below total
    first = block * _BLOCK
    within = np.cumsum(weights[first : first + _BLOCK])
    index = int(np.searchsorted(within, u * total - (blocks[block - 1] if block else 0.0), side="right"))
    if index == len(within):  # the two sums of the block were rounded differently: the last that has any weight
        index = int(np.searchsorted(within, within[-1]))
    return first + index, float(
        np.log(weights[first + index]) - np.log(total)
    )  # the quotient may be too small for a float


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(R, V) -> (R, V) float64. -inf stays."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _log_probs(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return log_softmax(logits)[np.arange(len(ids)), ids]


class Uniforms:
    """Random numbers of a request: (count,) float64 in [0, 1) for each step, or (count, columns).

    seed: one for all, whose row b is number b; or a tuple of seeds, one for each `count / len(seed)` rows.
    """

    def __init__(self, seed: int | tuple[int, ...], count: int, columns: int = 1) -> None:
        self.seed, self.count, self.columns = seed, count, columns
        self._block, self._first = np.empty((0, 0, 0)), 0  # (steps, count, columns)

    def __call__(self, step: int) -> np.ndarray:
        if not self._first <= step < self._first + len(self._block):
            self._first = step
            self._block = self._make(range(self._first, self._first + _STEPS_AT_ONCE))
        numbers = self._block[step - self._first]
        return numbers[:, 0] if self.columns == 1 else numbers

    def _make(self, steps: range) -> np.ndarray:
        seeds = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        rows_per_seed = self.count // len(seeds)
        return np.concatenate([uniforms(seed, steps, rows_per_seed, self.columns) for seed in seeds], axis=1)


def uniforms(seed: int, steps: range, rows: int, columns: int = 1) -> np.ndarray:
    """(steps, rows, columns) float64 in [0, 1), 53 random bits each; a pure function of seed, step, row and column.

    Column j of row b is made of words 2j and 2j + 1 of row b of the stream of its step (`tinygpt.random.words`).
    """
    c0, c1, step = (axis.astype(np.uint64) for axis in np.ix_(range(-(-columns // 2)), range(rows), range(len(steps))))
    low = step + np.uint64((_FIRST_STREAM + steps.start) & 0xFFFFFFFF)
    high = np.uint64((_FIRST_STREAM + steps.start) >> 32)
    zero = np.zeros(np.broadcast_shapes(c0.shape, c1.shape, step.shape), dtype=np.uint64)
    words = random.philox4x32(c0 + zero, c1 + zero, low + zero, high + zero, seed)  # four of (quads, rows, steps)
    pairs = [(words[i] << np.uint64(32)) | words[i + 1] for i in (0, 2)]
    bits = np.stack(pairs, axis=1).reshape(-1, rows, len(steps))[:columns]  # quad by quad, pair by pair
    return ((bits >> np.uint64(11)) * 2.0**-53).transpose(2, 1, 0)


def request_seed(config: GenerationConfig, prompts: int) -> int | tuple[int, ...]:
    """The config's seed, or a new one from the default generator, or a sentence if there are too many or too few."""
    seed: Any = config.seed
    if isinstance(seed, tuple) and len(seed) != prompts:
        raise UsageError(f"{WHERE}: seed must be one number, or one for each of the {prompts} prompts, not {len(seed)}")
    if config.greedy:
        return 0
    return int(random.default_generator.integers(2**53)) if seed is None else seed
