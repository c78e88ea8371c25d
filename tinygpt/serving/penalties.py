"""OpenAI's logit_bias, frequency_penalty and presence_penalty, as logits processors.

    score(token) = logit + bias(token) - frequency * count(token) - presence * [count(token) > 0]

count: how often the token occurs in the text generated so far; the prompt doesn't count.
Source: OpenAI's API reference, "Advanced usage: frequency and presence penalties".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Penalties:
    """The sum above, for one row or several."""

    def __init__(self, bias: Mapping[int, float], frequency: float, presence: float) -> None:
        self.ids, self.biases = np.array([*bias], np.int64), np.array([*bias.values()], np.float64)
        self.frequency, self.presence = frequency, presence

    def __call__(self, rows: Any, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        logits[:, self.ids] += self.biases
        for row, ids in zip(logits, rows, strict=True):
            found, counts = np.unique(ids[len(ids) - rows.new_tokens :], return_counts=True)
            row[found] -= self.frequency * counts + self.presence
        return logits


def penalties(bias: Mapping[int, float], frequency: float, presence: float) -> list[Penalties]:
    """As a list of processors: empty if there is nothing to do, which is faster."""
    return [Penalties(bias, frequency, presence)] if bias or frequency or presence else []
