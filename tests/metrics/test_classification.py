"""Accuracy, F1, the confusion matrix, errors of numbers: by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygpt import UsageError, metrics

FOUND, RIGHT = ["a", "b", "b", "a", "c"], ["a", "b", "a", "a", "b"]


def test_by_hand() -> None:
    assert metrics.accuracy(FOUND, RIGHT) == 3 / 5
    assert metrics.f1_scores(FOUND, RIGHT) == {"a": 0.8, "b": 0.5, "c": 0.0}
    assert metrics.f1(FOUND, RIGHT) == pytest.approx(1.3 / 3)
    assert metrics.f1(FOUND, RIGHT, "micro") == pytest.approx(0.6)
    assert metrics.f1(FOUND, RIGHT, "weighted") == pytest.approx((3 * 0.8 + 2 * 0.5) / 5)
    assert metrics.confusion_matrix(FOUND, RIGHT).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_a_label_that_never_occurs_counts_if_it_is_asked_for() -> None:
    assert metrics.f1(FOUND, RIGHT, labels=["a", "b", "c", "d"]) == pytest.approx(1.3 / 4)
    matrix = metrics.confusion_matrix(FOUND, RIGHT, ["d", "c", "b", "a"])
    assert matrix.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 2]]


def test_arrays_and_lists_are_the_same_labels() -> None:
    assert metrics.accuracy(np.array([1, 0]), [1, 0]) == 1.0
    assert metrics.f1(np.array([True, False]), [1, 0]) == 1.0
    assert metrics.confusion_matrix(iter([1, 0]), np.array([1, 1])).tolist() == [[0, 0], [1, 1]]


def test_numbers() -> None:
    assert metrics.mean_absolute_error([1, 2, 4], [1, 3, 1]) == pytest.approx(4 / 3)
    assert metrics.mean_squared_error([1, 2, 4], [1, 3, 1]) == pytest.approx(10 / 3)
    assert metrics.correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert metrics.correlation([1, 2, 3], [6, 4, 2]) == pytest.approx(-1)
    assert metrics.correlation([1, 1, 1], [6, 4, 2]) == 0


REFUSED: list[tuple[Any, str]] = [
    (lambda: metrics.accuracy([1], [1, 2]), "there are 1 predictions, but 2 references"),
    (lambda: metrics.accuracy([], []), "there is nothing to measure"),
    (lambda: metrics.accuracy("ab", "ab"), "predictions must be a list with one item for each example"),
    (lambda: metrics.accuracy(3, [1]), "predictions must be a list"),
    (lambda: metrics.f1([1], [1], "mean"), "average must be one of macro, micro, weighted"),
    (lambda: metrics.f1([1, "a"], [1, 2]), "labels must all be numbers or all be texts"),
    (lambda: metrics.f1([1], [1], labels=[1, 1]), "labels must be a list of different labels"),
    (lambda: metrics.confusion_matrix([1, 3], [1, 2], [1, 2]), r"the label 3 is not among labels=\[1, 2\]"),
    (lambda: metrics.mean_squared_error(["a"], [1]), "predictions and references must be numbers"),
    (lambda: metrics.mean_squared_error([[1, 2]], [[1, 2]]), "there must be one number for each example"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_mistake_gets_a_sentence(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()
