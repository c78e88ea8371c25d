"""Regression: the mean errors, the share of the variance explained, and the correlations of Pearson and Spearman."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import DtypeError
from .pairs import paired


def mean_absolute_error(predictions: Iterable[float], references: Iterable[float]) -> float:
    """The mean of |prediction - reference|."""
    found, right = _numbers("mean_absolute_error", predictions, references)
    return float(np.abs(found - right).mean())


def mean_squared_error(predictions: Iterable[float], references: Iterable[float]) -> float:
    """The mean of (prediction - reference)^2."""
    found, right = _numbers("mean_squared_error", predictions, references)
    return float(((found - right) ** 2).mean())


def r2(predictions: Iterable[float], references: Iterable[float]) -> float:
    """1 - (squared error) / (that of the references' mean): 1 is perfect, 0 as good as the mean, below 0 worse.

    If all references are equal: 1 if all predictions are right, otherwise 0, as in scikit-learn.
    """
    found, right = _numbers("r2", predictions, references)
    error, total = float(((found - right) ** 2).sum()), float(((right - right.mean()) ** 2).sum())
    return 1 - error / total if total else float(error == 0)


def correlation(predictions: Iterable[float], references: Iterable[float]) -> float:
    """Pearson's r, from -1 to 1; 0 if all numbers of one side are equal, where it is undefined."""
    found, right = _numbers("correlation", predictions, references)
    x, y = found - found.mean(), right - right.mean()
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size else 0.0


def rank_correlation(predictions: Iterable[float], references: Iterable[float]) -> float:
    """Spearman's rho: Pearson's r of the ranks, equal numbers having the mean of theirs."""
    found, right = _numbers("rank_correlation", predictions, references)
    return correlation(_ranks(found), _ranks(right))


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """(N,) -> (N,): 0 for the smallest; equal numbers have the mean of their ranks."""
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    mean = counts.cumsum() - (counts + 1) / 2
    return np.asarray(mean[place.reshape(-1)], np.float64)


def _numbers(metric: str, predictions: Iterable[float], references: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64 each. Raises ShapeError, UsageError, DtypeError."""
    sides = paired(metric, predictions, references)
    try:
        found, right = (np.asarray(side, np.float64) for side in sides)
    except (TypeError, ValueError):
        raise DtypeError(f"{metric}: predictions and references must be numbers") from None
    if found.ndim != 1 or right.ndim != 1:
        raise DtypeError(f"{metric}: there must be one number for each example, not {found.shape} and {right.shape}")
    return found, right
