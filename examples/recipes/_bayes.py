"""Naive Bayes on characters or words: the baseline of the classification recipes.

log p(label | text) = log p(label) + sum over the distinct grams of the text of log p(gram | label) + constant

p(gram | label) = (count + 1) / (all counts + number of known grams): one is added to every count (Laplace smoothing),
so that a gram that never occurred with a label does not rule that label out. Grams that never occurred in training are
ignored. A gram counts once per text, which works better for sentiment than counting every occurrence.
Source: Jurafsky and Martin, "Speech and Language Processing", chapter "Naive Bayes", on binary naive Bayes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

_WORD = re.compile(r"\w+|[^\w\s]")


def characters(text: str) -> list[str]:
    """The characters and the pairs of adjacent characters."""
    return [*text, *map("".join, pairwise(text))]


def words(text: str) -> list[str]:
    """The words, in lower case, and the pairs of adjacent words."""
    found = _WORD.findall(text.lower())
    return [*found, *map(" ".join, pairwise(found))]


def naive_bayes(
    train: Sequence[tuple[str, str]], texts: Sequence[str], grams: Callable[[str], list[str]] = characters
) -> list[str]:
    """The most likely label of each text. train: texts with their labels."""
    labels = sorted({label for _, label in train})
    counts = {label: Counter[str]() for label in labels}
    for text, label in train:
        counts[label].update(set(grams(text)))
    known = set().union(*counts.values())
    prior = Counter(label for _, label in train)
    total = {label: math.log(sum(counts[label].values()) + len(known)) for label in labels}

    def score(found: Iterable[str], label: str) -> float:
        return math.log(prior[label]) + sum(math.log(counts[label][gram] + 1) - total[label] for gram in found)

    each = ([gram for gram in sorted(set(grams(text))) if gram in known] for text in texts)
    return [max(labels, key=lambda label: score(found, label)) for found in each]
