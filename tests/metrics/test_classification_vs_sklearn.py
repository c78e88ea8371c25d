"""Accuracy, F1, the confusion matrix and the errors of numbers are scikit-learn's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinygpt import metrics
from tinygpt.labels import MULTI, REGRESSION
from tinygpt.metrics.labelling import label_report

stats = pytest.importorskip("scipy.stats", reason="needs the extra compat")
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
    assert metrics.r2(found, right) == pytest.approx(sklearn.r2_score(right, found))
    assert metrics.correlation(found, right) == pytest.approx(stats.pearsonr(found, right).statistic)
    assert metrics.rank_correlation(found, right) == pytest.approx(stats.spearmanr(found, right).statistic)
    found, right = found.round(), right.round()  # with many equal ranks
    assert metrics.rank_correlation(found, right) == pytest.approx(stats.spearmanr(found, right).statistic)


@pytest.mark.parametrize("found", [[1.0, 2, 3], [2.0, 2, 2]])
@pytest.mark.parametrize("right", [[1.0, 2, 4], [2.0, 2, 2]])
def test_equal_numbers(found: list[float], right: list[float]) -> None:
    assert metrics.r2(found, right) == pytest.approx(sklearn.r2_score(right, found))


@pytest.mark.parametrize("seed", range(3))
def test_the_report_on_several_labels_a_text(seed: int) -> None:
    """With a label that no text has: its F1 counts as 0 in the macro average, as with zero_division=0."""
    rng = np.random.default_rng(seed)
    right = (rng.random((30, 4)) < [0.5, 0.2, 0.8, 0]).astype("f4")
    scores = np.clip(0.5 + (right - 0.5) * rng.normal(0.3, 0.5, right.shape), 0.01, 0.99)
    clf = SimpleNamespace(problem_type=MULTI, label_names=list("abcd"))
    report, found = label_report(clf, scores, list(right)), scores > 0.5
    for average in ("micro", "macro"):
        wanted = sklearn.f1_score(right, found, average=average, zero_division=0)
        assert report[f"{average}_f1"] == pytest.approx(wanted), average
    each = sklearn.f1_score(right, found, average=None, zero_division=0)
    assert list(report["f1"].values()) == pytest.approx(list(each))
    assert report["accuracy"] == pytest.approx(sklearn.accuracy_score(right, found))
    losses = [sklearn.log_loss(right[:, k], scores[:, k], labels=[0, 1]) for k in range(4)]
    assert report["loss"] == pytest.approx(np.mean(losses))


def test_the_report_on_numbers() -> None:
    rng = np.random.default_rng(2)
    scores, right = rng.standard_normal((25, 1)), rng.standard_normal(25)
    report = label_report(SimpleNamespace(problem_type=REGRESSION), scores, list(right))
    assert report["root_mean_squared_error"] == pytest.approx(sklearn.root_mean_squared_error(right, scores[:, 0]))
    assert report["r2"] == pytest.approx(sklearn.r2_score(right, scores[:, 0]))
