"""What thins a distribution before a token is drawn: temperature, top_k, top_p, min_p, typical_p.

Each is a function of the scores of one row alone, so it can work on the candidates that the one before has left: a
`Truncation` says of (n,) scores which to keep, and the next one sees fewer. Applied to whole logits (R, V), as a
processor (see `processors`), it puts -inf at what is not kept. Both ways give the same result, because scores of -inf
have probability 0 and change nothing. `truncations` lists them in transformers' order.

At least `min_tokens` are kept: 1, or in beam search one more than there are eos tokens, so that a beam can go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .options import GenerationConfig
from .processors import Rows


def unnormalized_probs(scores: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """exp(scores - max), float64: the probabilities (n,) times a constant. -inf becomes exactly 0, the greatest 1."""
    weights = np.subtract(scores, scores.max(), out=out, dtype=np.float64)
    return np.exp(weights, out=weights)  # in place: a fresh array of a whole vocabulary costs more than its exp


class Truncation(ABC):
    """Keeps some tokens of each row."""

    @abstractmethod
    def keep(self, scores: np.ndarray) -> np.ndarray:
        """Of (n,) scores, at least one of them finite: (n,) bool, which to keep."""

    def __call__(self, rows: Rows, logits: np.ndarray) -> np.ndarray:
        """As a processor: logits (R, V) -> (R, V)."""
        kept = np.full(logits.shape, -np.inf)
        for row, result in zip(logits, kept, strict=True):
            if row.max() > -np.inf:  # else nothing is left to choose from
                np.copyto(result, row, where=self.keep(row))
        return kept


@dataclass(frozen=True)
class Temperature:
    """Divide by `temperature` > 0: below 1 the likely become likelier, above 1 the choice opens up."""

    temperature: float

    def __call__(self, rows: Rows | None, logits: np.ndarray) -> np.ndarray:
        """Logits of any shape (..., V). Those too large for floating point get the greatest moved to 0 first."""
        best = logits.max(axis=-1, keepdims=True).astype(np.float64)  # to float32 a temperature of 1e-300 is 0
        with np.errstate(over="ignore"):
            overflow = np.isinf(best / self.temperature) & np.isfinite(best)
            if overflow.any():  # the same probabilities, but without inf - inf
                logits = logits - np.where(overflow, best, 0.0)
            return np.divide(logits, self.temperature, dtype=np.float64)


@dataclass(frozen=True)
class TopK(Truncation):
    """The k greatest, and those equal to the k-th. Beyond V, k changes nothing.

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
    """The most probable tokens whose probabilities first add up to p or more ("nucleus sampling").

    From the other end: tokens go, the least probable first, as long as those that are gone have at most 1 - p together.
    Of equals the lower id goes first; in transformers, whose sort is not stable, that is left open. Source: Holtzman et
    al., "The Curious Case of Neural Text Degeneration", 2020, section 3.1.
    """

    p: float
    min_tokens: int = 1

    def keep(self, scores: np.ndarray) -> np.ndarray:
        if self.p >= 1:
            return np.ones(len(scores), dtype=bool)  # rounding must not cut the tail
        weights = unnormalized_probs(scores)
        rest = (1 - self.p) * weights.sum()
        # n tokens below rest / n are together below rest: they go at once, and there are many of them.
        keep = weights >= rest / len(weights)
        if np.count_nonzero(keep) < self.min_tokens:
            keep[:] = True
        left = weights[keep]
        count = min(_smallest_within(left, rest - weights.sum(where=~keep)), len(left) - self.min_tokens)
        if count > 0:
            left = scores[keep]  # these are ordered even where the weights of all are 0
            left.partition(count - 1)
            last = left[count - 1]
            equal = np.flatnonzero(keep & (scores == last))
            keep &= scores > last
            keep[equal[count - np.count_nonzero(left < last) :]] = True
        return keep


def _smallest_within(values: np.ndarray, most: float) -> int:
    """How many of the smallest values add up to at most `most`. Leaves `values` in another order.

    Half of those in question are looked at together: O(n) altogether, where sorting and adding up take five times
    as long for a vocabulary of 50,000.
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
    """Tokens with at least p times the probability of the most probable one.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2024, section 3.
    """

    p: float
    min_tokens: int = 1

    def keep(self, scores: np.ndarray) -> np.ndarray:
        keep = unnormalized_probs(scores) >= self.p  # the greatest weight is 1
        if np.count_nonzero(keep) < self.min_tokens:
            keep[np.argsort(-scores, kind="stable")[: self.min_tokens]] = True
        return keep


@dataclass(frozen=True)
class TypicalP(Truncation):
    """Tokens whose surprise, -log p, is nearest to the entropy, nearest first, until they add up to `mass`.

    Those as near as the last one stay as well. Source: Meister et al., "Locally Typical Sampling", 2023, section 3.
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
        # Tokens of equal distance stay or go together, so their order matters only to the least number of tokens.
        order = np.argsort(distance, kind="stable" if self.min_tokens > 1 else None)
        before = np.cumsum(weights[order]) < self.mass * total
        last = order[min(int(np.count_nonzero(before)), len(order) - 1)]
        keep = distance <= distance[last]
        keep[order[: self.min_tokens]] = True
        return keep


def truncations(config: GenerationConfig) -> list[Temperature | Truncation]:
    """What `config` asks for, in transformers' order; nothing for a greedy choice."""
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
