"""Classification: accuracy, the confusion matrix, F1.

    F1 of a label = 2 tp / (2 tp + fp + fn)        the harmonic mean of precision and recall; 0 if nothing is right
    macro F1      = the mean over labels            every label counts the same, however rare it is
    micro F1      = the same formula on the sums    over all labels; with one label per text it equals the accuracy

Labels are numbers or strings. Results equal scikit-learn's with zero_division=0, whose arguments are in the opposite
order: references, then predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from .pairs import paired

AVERAGES = ("macro", "micro", "weighted")


def accuracy(predictions: Iterable[Any], references: Iterable[Any]) -> float:
    """The share of predictions that equal their reference. Raises UsageError."""
    found, right = paired("accuracy", predictions, references)
    return sum(a == b for a, b in zip(found, right, strict=True)) / len(right)


def confusion_matrix(
    predictions: Iterable[Any], references: Iterable[Any], labels: Sequence[Any] | None = None
) -> np.ndarray:
    """(K, K) counts: row = the true label, column = the predicted one.

    labels: K labels in the order of the rows; None: those that occur, sorted. Raises UsageError for any other label,
    which would be missing from the sums.
    """
    where = "confusion_matrix"
    found, right = paired(where, predictions, references)
    place = {label: i for i, label in enumerate(_labels(where, found, right, labels))}
    matrix = np.zeros((len(place), len(place)), np.int64)
    for predicted, true in zip(found, right, strict=True):
        for label in (predicted, true):
            if label not in place:
                raise UsageError(f"{where}: the label {label!r} is not among labels={list(place)}")
        matrix[place[true], place[predicted]] += 1
    return matrix


def f1_scores(
    predictions: Iterable[Any], references: Iterable[Any], labels: Sequence[Any] | None = None
) -> dict[Any, float]:
    """The F1 of each label, by label: those given, or those that occur, sorted."""
    found, right = paired("f1", predictions, references)
    counts = _counts(found, right, _labels("f1", found, right, labels))
    return {label: _f1(*count) for label, count in counts.items()}


def f1(
    predictions: Iterable[Any],
    references: Iterable[Any],
    average: str = "macro",
    labels: Sequence[Any] | None = None,
) -> float:
    """The macro, micro or weighted (by how often a label is true) F1. Raises UsageError.

    labels: the labels to average over; None: those that occur in either list. A label that occurs in neither counts as
    0.
    """
    if average not in AVERAGES:
        raise UsageError(f"f1: average must be one of {', '.join(AVERAGES)}, not {average!r}")
    found, right = paired("f1", predictions, references)
    counts = _counts(found, right, _labels("f1", found, right, labels))
    scores = [_f1(*count) for count in counts.values()]
    if average == "macro":
        return sum(scores) / len(scores)
    if average == "micro":
        return _f1(*(sum(numbers) for numbers in zip(*counts.values(), strict=True)))
    weights = [tp + fn for tp, _, fn in counts.values()]
    total = sum(weights)
    return sum(w * s for w, s in zip(weights, scores, strict=True)) / total if total else 0.0


def _counts(found: list[Any], right: list[Any], labels: Sequence[Any]) -> dict[Any, tuple[int, int, int]]:
    """True positives, false positives, false negatives of each label."""
    counts = {label: [0, 0, 0] for label in labels}
    for predicted, true in zip(found, right, strict=True):
        if predicted == true:
            if true in counts:
                counts[true][0] += 1
            continue
        if predicted in counts:
            counts[predicted][1] += 1
        if true in counts:
            counts[true][2] += 1
    return {label: (tp, fp, fn) for label, (tp, fp, fn) in counts.items()}


def _f1(tp: int, fp: int, fn: int) -> float:
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def _labels(where: str, found: list[Any], right: list[Any], labels: Sequence[Any] | None) -> list[Any]:
    try:
        chosen = sorted({*found, *right}) if labels is None else list(labels)
        different = len(set(chosen))
    except TypeError as error:
        raise UsageError(f"{where}: labels must all be numbers or all be texts ({error})") from error
    if different != len(chosen) or not chosen:
        raise UsageError(f"{where}: labels must be a list of different labels, not {chosen}")
    return chosen
