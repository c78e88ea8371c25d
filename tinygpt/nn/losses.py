"""The losses for classification and regression, composed of existing operations.

Let y_i be the label of row i, K the number of labels, w_j the weight of label j (1 if none are given) and e the label
smoothing. The target of a row is no longer the label alone: the share e is spread evenly over all labels,

    q_ij   = w_j * ((1 - e) * [j = y_i] + e / K)
    loss   = -(sum over i, j of q_ij * log softmax(x_i)_j) / (sum over i of w_{y_i})

With e = 0 and w = 1 this is `ops.cross_entropy`, which is called then. The mean is a weighted one, as in PyTorch: rare
classes with large weights don't make the loss larger, only contribute more to it. To split a batch into parts, weight
each part's loss by its own denominator, `total_weight`, and divide the sum by the total: a mean of the parts' means
would be a different loss.

Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7 (label smoothing).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backends import array_module, from_host
from ..checks import number
from ..errors import DtypeError, ShapeError, UsageError
from ..ops._arguments import plain_array
from ..ops.cross_entropy import IGNORE_INDEX, check_targets
from ..tensor import Tensor


def classification_loss(
    logits: Tensor, labels: Any, *, label_smoothing: float = 0.0, class_weights: Any = None
) -> Tensor:
    """The loss above, a single number. logits (N, K); labels (N,) integers in 0 .. K - 1, or -100 to leave a row out.

    label_smoothing: e, from 0 to below 1. class_weights: (K,) numbers, at least 0; None: all 1.
    Raises UsageError, ShapeError, DtypeError, RangeError.
    """
    where, K = "classification_loss", logits.shape[-1]
    smoothing = number(where, "label_smoothing", label_smoothing, at_least=0, below=1)
    if smoothing == 0 and class_weights is None:
        return ops.cross_entropy(logits, labels)
    weights = _class_weights(where, class_weights, K)  # (K,)
    targets, count = check_targets(where, labels, logits.shape[:-1], K, IGNORE_INDEX, logits)
    xp = array_module(targets)
    counted = xp.flatnonzero(targets != IGNORE_INDEX)  # (n,)
    q = xp.full((count, K), smoothing / K)  # (n, K)
    q[xp.arange(count), targets[counted]] += 1.0 - smoothing
    on_device = from_host(where, "class_weights", weights, logits.data)  # (K,)
    total = float(on_device[targets[counted]].sum())
    if total == 0:
        raise UsageError(f"{where}: the class weights of all {count} labels in this batch are 0: there is no mean")
    q *= on_device / total
    log_probabilities = ops.log_softmax(logits)[counted]  # (n, K)
    return -(log_probabilities * Tensor(q.astype(logits.dtype))).sum()


def total_weight(labels: Any, class_weights: Any = None) -> float:
    """The denominator of `classification_loss` for labels (N,): how much a part of a batch counts."""
    targets = np.asarray(plain_array("total_weight", "labels", labels)).reshape(-1)
    counted = targets[targets != IGNORE_INDEX]
    return float(counted.size if class_weights is None else np.asarray(class_weights, np.float64)[counted].sum())


def mse_loss(values: Tensor, targets: Any) -> Tensor:
    """The mean of (value - target)^2 over all elements. values and targets have one shape."""
    difference = values - _numbers("mse_loss", targets, values)
    return (difference * difference).mean()


def l1_loss(values: Tensor, targets: Any) -> Tensor:
    """The mean of |value - target| over all elements; the gradient is 0 where they are equal, as in PyTorch."""
    difference = values - _numbers("l1_loss", targets, values)
    sign = array_module(difference.data).sign(difference.data)  # a constant in |d| = d * sign(d), except at 0
    return (difference * Tensor(sign)).mean()


def _class_weights(where: str, weights: Any, K: int) -> np.ndarray:
    """(K,) float64, finite and at least 0."""
    if weights is None:
        return np.ones(K)
    array = np.asarray(plain_array(where, "class_weights", weights))
    if array.dtype.kind not in "fiu":
        raise DtypeError(f"{where}: class_weights must be numbers, not {array.dtype}")
    if array.shape != (K,):
        raise ShapeError(f"{where}: class_weights must have the shape ({K},), one for each label, not {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise UsageError(f"{where}: class_weights must be finite and at least 0, not {array.tolist()}")
    return array.astype(np.float64)


def _numbers(where: str, targets: Any, like: Tensor) -> Tensor:
    """targets as a constant of `like`'s shape, dtype and backend. Raises DtypeError, ShapeError, UsageError."""
    array = plain_array(where, "targets", targets)
    if array.dtype.kind not in "fiub":
        raise DtypeError(f"{where}: targets must be numbers, not {array.dtype}")
    if array.shape != like.shape or array.size == 0:
        raise ShapeError(
            f"{where}: values and targets must have one shape with at least one element, not {like.shape} and "
            f"{array.shape}"
        )
    if not array_module(array).isfinite(array).all():
        raise UsageError(f"{where}: targets must be finite numbers")
    return Tensor(from_host(where, "targets", array, like.data).astype(like.dtype, copy=False))
