"""k-fold cross-validation: every text is tested once, with a model that has never seen it.

    for train, test in folds(texts, 5, labels=labels): ...        # indices of rows

Texts that differ only in white space are in the same fold, so that none is both memorized and tested. Folds have about
the same share of each label and about the same number of rows: groups of equal texts are shuffled, sorted by label, and
dealt one after another to the fold with the fewest rows of that label and, among equals, with the fewest rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from ..checks import whole_number
from ..errors import ShapeError, UsageError
from ..random import Generator
from .splitting import same_key


def folds(
    texts: Sequence[str], k: int, *, labels: Sequence[Hashable] | None = None, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """k pairs of indices, int64, in ascending order: those to train on, and those to test on.

    Raises UsageError if there are fewer than k different texts, ShapeError if there are not as many labels as texts.
    """
    k = whole_number("folds", "folds", k, at_least=2)
    if labels is not None and len(labels) != len(texts):
        raise ShapeError(f"folds: there are {len(texts)} texts, but {len(labels)} labels")
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(same_key(text), []).append(index)
    if len(groups) < k:
        raise UsageError(
            f"folds: {k} folds need at least {k} different texts, but there are only {len(groups)} in {len(texts)} rows"
        )
    members = list(groups.values())
    order = np.argsort(Generator(seed).uniform(len(members)), kind="stable")
    shuffled = [members[i] for i in order]
    if labels is not None:
        number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        shuffled.sort(key=lambda group: number[labels[group[0]]])  # stable: shuffled among equals
    tests: list[list[int]] = [[] for _ in range(k)]
    dealt: list[Counter[Hashable]] = [Counter() for _ in range(k)]  # the rows of each label in each fold
    for group in shuffled:
        label = None if labels is None else labels[group[0]]
        fold = min(range(k), key=lambda fold: (dealt[fold][label], len(tests[fold])))
        tests[fold] += group
        dealt[fold].update(None if labels is None else labels[row] for row in group)
    everything = np.arange(len(texts))
    return [(np.setdiff1d(everything, test), np.sort(np.array(test, np.int64))) for test in tests]
