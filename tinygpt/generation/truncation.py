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
        dropped, last = smallest_within(weights, (1 - self.p) * weights.sum())
        most = len(weights) - self.min_tokens
        if dropped > most or last is None:
            dropped = max(0, min(dropped, most))
            last = np.partition(weights, dropped - 1)[dropped - 1] if dropped else -1.0
        keep = weights > last
        # Of those that weigh as much as the last one dropped, the lowest scores, which still differ where the weights
        # have underflowed to 0, and of equal scores the lowest ids.
        equal = np.flatnonzero(weights == last)
        of_these = len(equal) - (len(weights) - np.count_nonzero(keep) - dropped)
        keep[equal[np.argsort(scores[equal], kind="stable")[of_these:]]] = True
        return keep


_SAMPLED, _MARGIN = 1024, 64


def smallest_within(values: np.ndarray, most: float) -> tuple[int, float | None]:
    """How many of the smallest values (n,), none negative, add up to at most `most`, and the largest of these.

    Instead of sorting all, it sorts a sample, which tells between which two values to expect the answer; usually it is
    there, and an eighth of the values is left to look at. O(n) in total. None for the largest if it is not among the
    values looked at last.
    """
    count = 0
    while len(values) > 2 * _SAMPLED:
        low, high = _expected(values, most)
        below = values < low
        total = (values * below).sum()
        if total > most:
            values = values[below]
            continue
        inside = values[(values <= high) ^ below]
        if len(inside) == len(values):
            break  # nearly all are equal
        total_inside, count, most = inside.sum(), count + int(np.count_nonzero(below)), most - total
        if total_inside > most:
            values = inside
        else:
            values, count, most = values[values > high], count + len(inside), most - total_inside
    ordered = np.sort(values)
    within = int(np.searchsorted(np.cumsum(ordered), most, side="right"))
    return count + within, float(ordered[within - 1]) if within else None


def _expected(values: np.ndarray, most: float) -> tuple[float, float]:
    """Two of the values, between which the sum of the smallest ones is likely to reach `most`."""
    step = len(values) // _SAMPLED
    sample = np.sort(values[::step])
    middle = int(np.searchsorted(np.cumsum(sample) * step, most))
    last = len(sample) - 1
    return sample[min(max(0, middle - _MARGIN), last)], sample[min(middle + _MARGIN, last)]


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
