"""The split of rows into training and validation rows: equal texts on one side, each label in proportion."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from ..checks import number
from ..errors import UsageError
from ..random import Generator
from .row_batches import SPLIT_STREAM


def same_key(key: str) -> str:
    """A form in which keys that differ only in white space are equal."""
    return " ".join(key.split())


def split_rows(
    keys: Sequence[str], fraction: float, seed: int, labels: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int]]:
    """The indices of the rows for training and of about `fraction` of them for validation, in order.

    Rows with equal keys are on the same side: otherwise a model would be evaluated on what it has memorized.
    labels: of a classifier, one a row, or several as a frozenset. Then the split is stratified: each label has its
    share of the validation rows, to a row where rows have one label, and at least one while there are as many
    validation rows as labels. A label with a single text is for training alone. There are at least two validation rows.
    Raises UsageError if all keys are equal.
    """
    fraction = number("split_rows", "fraction", fraction, above=0, below=1)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(same_key(key), []).append(index)
    if len(groups) < 2:
        raise UsageError(
            f"{len(keys)} row{'s' * (len(keys) != 1)} with fewer than two different texts or prompts can't be split "
            "into training and validation: give separate validation rows with --valid FILE"
        )
    members = list(groups.values())
    order = np.argsort(Generator(seed, SPLIT_STREAM).uniform(len(members)), kind="stable")
    drawn = [members[i] for i in order]
    wanted = min(max(1, round(fraction * len(keys))), len(keys) - 1)
    chosen = set[int]() if labels is None else _stratified(drawn, max(2, wanted), list(map(_set, labels)))
    smallest = min(members, key=len)
    validation = chosen or _drawn(drawn, wanted) or set(smallest)
    return [i for i in range(len(keys)) if i not in validation], sorted(validation)


def _drawn(drawn: Sequence[list[int]], wanted: int) -> set[int]:
    """At most `wanted` rows, in the order in which they were drawn."""
    chosen = set[int]()
    for group in drawn:
        if len(chosen) + len(group) <= wanted:
            chosen.update(group)
    return chosen


def _set(labels: Hashable) -> frozenset[Hashable]:
    """The labels of a row; to have none counts as one."""
    return (labels or frozenset({None})) if isinstance(labels, frozenset) else frozenset({labels})


def _stratified(drawn: Sequence[list[int]], wanted: int, labels: Sequence[frozenset[Hashable]]) -> set[int]:
    """At most `wanted` rows, of each label its share; at least one row of each label is left.

    Rows with the rarest labels are taken first: those of frequent ones can still be had later. Source: Sechidis et al.,
    "On the Stratification of Multi-Label Data", 2011, section 3.2, without the random choice between equals.
    """
    counts = Counter(label for group in drawn for i in group for label in labels[i])  # in the order of `drawn`
    texts = Counter(label for group in drawn for label in {label for i in group for label in labels[i]})
    several = sum(counts.values()) / len(labels)  # labels a row
    eligible = {label: counts[label] for label in counts if texts[label] > 1}
    room = shares(eligible, round(wanted * several))
    left, chosen = counts.copy(), set[int]()

    def take(group: list[int], within: bool) -> None:
        its = Counter(label for i in group for label in labels[i])
        fits = len(chosen) + len(group) <= wanted and all(left[label] > its[label] for label in its)
        if fits and chosen.isdisjoint(group) and not (within and any(room.get(label, 0) < its[label] for label in its)):
            chosen.update(group)
            left.subtract(its)
            for label in its:
                room[label] = room.get(label, 0) - its[label]

    for group in sorted(drawn, key=lambda group: min(counts[label] for i in group for label in labels[i])):
        take(group, within=True)
    for group in drawn:  # where groups of several rows, or rows of several labels, left gaps
        take(group, within=False)
    return chosen


def shares(counts: dict[Hashable, int], wanted: int) -> dict[Hashable, int]:
    """How many of `wanted` rows each label gets: in proportion to its count, and one each as far as that goes."""
    total = sum(counts.values())
    found = dict.fromkeys(counts, 0)
    ideal = {label: wanted * count / total for label, count in counts.items()}
    for label in sorted(counts, key=lambda label: -counts[label])[:wanted]:
        found[label] = max(1, math.floor(ideal[label]))
    while sum(found.values()) > wanted:
        found[max((label for label in found if found[label] > 1), key=lambda label: found[label] - ideal[label])] -= 1
    while found and sum(found.values()) < wanted:
        found[max(found, key=lambda label: ideal[label] - found[label])] += 1
    return found


def digest_of(rows: Iterable[int]) -> str:
    """The SHA-256 of row indices, by which a later reading notices that it would choose other rows."""
    return hashlib.sha256(np.array(list(rows), np.int64).tobytes()).hexdigest()
