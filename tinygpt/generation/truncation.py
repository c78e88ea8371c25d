"""Reshape or truncate the distribution before sampling: temperature, top_k, top_p, min_p, typical_p.

Each depends only on the scores of one row, so it can work on the candidates left by the previous one: a `Truncation`
selects which of (n,) scores to keep, and the next one sees fewer. Used as a processor (see `processors`) on whole
logits (R, V), it sets all others to -inf. Both ways give the same result, because scores of -inf have probability 0.
`truncations` lists them in transformers' order.

At least `min_tokens` are kept: 1, or max(2, 1 + number of eos tokens) in beam search, so that a beam can continue.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .options import GenerationConfig
from .processors import Rows


def unnormalized_probs(scores: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """exp(scores - max), float64: the probabilities (n,) times a constant. -inf becomes exactly 0, the largest 1."""
    weights = np.subtract(scores, scores.max(), out=out, dtype=np.float64)
    return np.exp(weights, out=weights)  # in place: allocating an array of vocabulary size costs more than its exp


class Truncation(ABC):
    """Keeps only some tokens of each row."""

    @abstractmethod
    def keep(self, scores: np.ndarray) -> np.ndarray:
        """scores (n,), at least one of them finite -> (n,) bool, which to keep."""

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        """As a processor: logits (R, V) -> (R, V)."""
        kept = np.full(logits.shape, -np.inf)
        for row, result in zip(logits, kept, strict=True):
            if row.max() > -np.inf:  # else every token is ruled out already
                np.copyto(result, row, where=self.keep(row))
        return kept


@dataclass(frozen=True)
class Temperature:
    """Divide the logits by `temperature` > 0: below 1 sharpens the distribution, above 1 flattens it."""

    temperature: float

    def __call__(self, rows: Rows | None, logits: np.ndarray) -> np.ndarray:
        """logits: any shape (..., V). Rows that would overflow are shifted first, so that their maximum is 0."""
        best = logits.max(axis=-1, keepdims=True).astype(np.float64)  # in float32, a temperature of 1e-300 would be 0
        with np.errstate(over="ignore"):
            overflow = np.isinf(best / self.temperature) & np.isfinite(best)
            if overflow.any():  # a shift does not change the probabilities, and avoids inf - inf
                logits = logits - np.where(overflow, best, 0.0)
            return np.divide(logits, self.temperature, dtype=np.float64)


@dataclass(frozen=True)
class TopK(Truncation):
    """Keep the k largest scores, and any equal to the k-th. k > V keeps all.

    Source: Fan, Lewis, Dauphin, "Hierarchical Neural Story Generation", 2018, section 5.4.
    """

    k: int
    min_tokens: int = 1

    def keep(self, scores: np.ndarray) -> np.ndarray:
        k = max(self.k, self.min_tokens)
        if k >= len(scores):
            return np.ones(len(scores), dtype=bool)
        return scores >= np.partition(scores, -k)[-k]


@dataclass(frozen=True)
class TopP(Truncation):
    """Keep the smallest set of most probable tokens whose total probability is at least p ("nucleus sampling").

    Equivalently: drop tokens, the least probable first, while the total probability of those dropped is at most 1 - p.
    On ties the lower id is dropped first; in transformers, whose sort is not stable, that is unspecified. Source:
    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020, section 3.1.
    """

    p: float
    min_tokens: int = 1

    def keep(self, scores: np.ndarray) -> np.ndarray:
        if self.p >= 1:
            return np.ones(len(scores), dtype=bool)  # else rounding could drop the tail
        weights = unnormalized_probs(scores)
        rest = (1 - self.p) * weights.sum()
        # All tokens below rest / n together weigh less than rest, so they can be dropped at once; most tokens are.
        keep = weights >= rest / len(weights)
        if np.count_nonzero(keep) < self.min_tokens:
            keep[:] = True
        left = weights[keep]
        count = min(_smallest_within(left, rest - weights.sum(where=~keep)), len(left) - self.min_tokens)
        if count > 0:
            left = scores[keep]  # scores still differ where the weights have underflowed to 0
            left.partition(count - 1)
            last = left[count - 1]
            equal = np.flatnonzero(keep & (scores == last))
            keep &= scores > last
            keep[equal[count - np.count_nonzero(left < last) :]] = True
        return keep


def _smallest_within(values: np.ndarray, most: float) -> int:
    """How many of the smallest values add up to at most `most`. Reorders `values`.

    A binary search with a partition at each step, O(n) in total. Sorting and summing would take five times as long for
    a vocabulary of 50,000.
    """
    count = 0
    while len(values) > 64:
        half = len(values) // 2
        values.partition(half)
        total = values[:half].sum()
        if total <= most:
            count, most, values = count + half, most - total, values[half:]
        else:
            values = values[:half]
    return count + int(np.searchsorted(np.cumsum(np.sort(values)), most, side="right"))


@dataclass(frozen=True)
class MinP(Truncation):
    """Keep tokens with at least p times the probability of the most probable one.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2024, section 3.
    """

    p: float
    min_tokens: int = 1

    def keep(self, scores: np.ndarray) -> np.ndarray:
        keep = unnormalized_probs(scores) >= self.p  # the largest weight is 1
        if np.count_nonzero(keep) < self.min_tokens:
            keep[np.argsort(-scores, kind="stable")[: self.min_tokens]] = True
        return keep


@dataclass(frozen=True)
class TypicalP(Truncation):
    """Keep the tokens whose surprise, -log p, is closest to the entropy, until their total probability reaches `mass`.

    Tokens as close as the last one are kept too. Source: Meister et al., "Locally Typical Sampling", 2023, section 3.
    """

    mass: float
    min_tokens: int = 1

    def keep(self, scores: np.ndarray) -> np.ndarray:
        if self.mass >= 1:
            return np.ones(len(scores), dtype=bool)
        weights = unnormalized_probs(scores)
        total = weights.sum()
        surprise = np.log(total) + np.subtract(scores.max(), scores, dtype=np.float64)  # -log p; inf where p is 0
        possible = weights > 0
        entropy = (surprise[possible] * weights[possible]).sum() / total
        distance = np.abs(surprise - entropy)
        # Tokens at equal distance are kept or dropped together, so their order matters only for min_tokens.
        order = np.argsort(distance, kind="stable" if self.min_tokens > 1 else None)
        before = np.cumsum(weights[order]) < self.mass * total
        last = order[min(int(np.count_nonzero(before)), len(order) - 1)]
        keep = distance <= distance[last]
        keep[order[: self.min_tokens]] = True
        return keep


def truncations(config: GenerationConfig) -> list[Temperature | Truncation]:
    """The temperature and truncations that `config` enables, in transformers' order; none if it is greedy."""
    if config.greedy:
        return []
    least = 1 if config.num_beams == 1 else max(2, 1 + len(config.eos_ids))
    found: list[Temperature | Truncation] = []
    if config.temperature != 1:
        found.append(Temperature(config.temperature))
    if config.top_k is not None:
        found.append(TopK(config.top_k, least))
    if config.top_p is not None and config.top_p < 1:
        found.append(TopP(config.top_p, least))
    if config.min_p:
        found.append(MinP(config.min_p, least))
    if config.typical_p is not None and config.typical_p < 1:
        found.append(TypicalP(config.typical_p, least))
    return found
