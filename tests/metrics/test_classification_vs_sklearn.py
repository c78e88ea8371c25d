"""Accuracy, F1, the confusion matrix and the errors of numbers are scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygpt import metrics

sklearn = pytest.importorskip("sklearn.metrics", reason="needs the extra compat")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [int, str])
def test_labels(seed: int, kind: Any) -> None:
    """With a label that is never predicted and one that is never true, as chance has it."""
    rng = np.random.default_rng(seed)
    right = [kind(x) for x in rng.integers(0, 5, 40)]
    found = [kind(x) for x in np.where(rng.random(40) < 0.5, rng.integers(1, 7, 40), [int(x) for x in right])]
    assert metrics.accuracy(found, right) == pytest.approx(sklearn.accuracy_score(right, found))
    assert np.array_equal(metrics.confusion_matrix(found, right), sklearn.confusion_matrix(right, found))
    for average in ("macro", "micro", "weighted"):
        wanted = sklearn.f1_score(right, found, average=average, zero_division=0)
        assert metrics.f1(found, right, average) == pytest.approx(wanted), average
    each = sklearn.f1_score(right, found, average=None, zero_division=0)
    assert list(metrics.f1_scores(found, right).values()) == pytest.approx(list(each))
    some = [kind(x) for x in (3, 1, 9)]
    for average in ("macro", "micro", "weighted"):
        wanted = sklearn.f1_score(right, found, labels=some, average=average, zero_division=0)
        assert metrics.f1(found, right, average, some) == pytest.approx(wanted), average


def test_numbers() -> None:
    rng = np.random.default_rng(0)
    found, right = rng.standard_normal(30), rng.standard_normal(30)
    assert metrics.mean_absolute_error(found, right) == pytest.approx(sklearn.mean_absolute_error(right, found))
    assert metrics.mean_squared_error(found, right) == pytest.approx(sklearn.mean_squared_error(right, found))
    assert metrics.correlation(found, right) == pytest.approx(np.corrcoef(found, right)[0, 1])
