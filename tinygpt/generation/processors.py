"""Logits processors: pure functions from scores to scores, applied one after the other before a token is drawn.

Each takes logits (B, V) in float64 and returns new ones of that shape; a token that must not be drawn gets -inf. The
order is Hugging Face's: temperature, then top_k, then top_p, so that top_p counts the probabilities that are left.
"""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (B, V). -inf becomes exactly 0."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Divide by `temperature` > 0: below 1 the likely become likelier, above 1 the choice opens up.

    The greatest logit is moved to 0 first, which changes no probability: then a tiny temperature can't overflow.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        return shifted / temperature


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep the k greatest of each row; those equal to the k-th are kept too. Beyond V, k changes nothing."""
    if k >= logits.shape[1]:
        return logits
    kth = np.partition(logits, -k, axis=1)[:, -k, None]  # (B, 1)
    return np.where(logits < kth, -np.inf, logits)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the most probable tokens whose probabilities first add up to p or more ("nucleus sampling").

    The token that crosses p stays, so at least one does. Among equals the lower id comes first.
    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020, section 3.1.
    """
    if p >= 1.0:
        return logits  # rounding must not cut the tail
    order = np.argsort(-logits, axis=1, kind="stable")  # (B, V) best first
    sorted_probabilities = np.take_along_axis(softmax(logits), order, axis=1)
    before = np.cumsum(sorted_probabilities, axis=1) - sorted_probabilities  # (B, V) what comes ahead of each
    keep = np.empty(logits.shape, dtype=bool)
    np.put_along_axis(keep, order, before < p, axis=1)
    return np.where(keep, logits, -np.inf)
