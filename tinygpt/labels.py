"""Validate what a classifier is given besides token ids: labels, text lengths, label names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import backends
from .checks import integer_array
from .errors import DtypeError, RangeError, ShapeError, UsageError
from .ops._arguments import plain_array
from .ops.cross_entropy import IGNORE_INDEX
from .tensor import Tensor

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)  # transformers' names


def problem_of(where: str, labels: Any) -> str:
    """The problem type implied by the labels' dtype if there are several labels, as in transformers."""
    return SINGLE if plain_array(where, "labels", labels).dtype.kind in "iu" else MULTI


def checked_labels(where: str, problem: str, labels: Any, num_labels: int) -> Any:
    """labels as an array of the shape that this problem has. Raises ShapeError, DtypeError, RangeError."""
    array = plain_array(where, "labels", labels)
    if problem == SINGLE:
        return _single(where, array, num_labels)
    if array.ndim == 1 and num_labels == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != num_labels:
        shape = "(B,)" if num_labels == 1 else f"(B, {num_labels})"
        raise ShapeError(f"{where}: labels must have the shape {shape} for {problem}, not {array.shape}")
    return array


def _single(where: str, labels: Any, num_labels: int) -> Any:
    """(B,) integers in 0 .. num_labels - 1 or IGNORE_INDEX."""
    array = integer_array(f"{where}: labels", labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ShapeError(f"{where}: labels must have the shape (B,), one for each text, not {array.shape}")
    wrong = (array != IGNORE_INDEX) & ((array < 0) | (array >= num_labels))
    if wrong.any():
        row = int(wrong.argmax())
        raise RangeError(
            f"{where}: the label of row {row} is {int(array[row])}, but with num_labels={num_labels} labels must be in "
            f"0 .. {num_labels - 1}, or {IGNORE_INDEX} to leave the row out"
        )
    return array


def checked_names(where: str, names: Sequence[str] | None, num_labels: int) -> list[str]:
    """The names of the labels: different texts, one for each; None: LABEL_0 ... Raises DtypeError, UsageError."""
    if names is None:
        return [f"LABEL_{i}" for i in range(num_labels)]
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise DtypeError(f"{where}: label_names must be a list of texts, not {names!r}")
    if len(names) != num_labels or len(set(names)) != len(names):
        raise UsageError(f"{where}: label_names must be {num_labels} different names, not {list(names)}")
    return list(names)


def checked_lengths(where: str, lengths: Any, B: int, T: int) -> np.ndarray:
    """(B,) int64 on the host, each in 1 .. T; None: all T. Raises ShapeError, DtypeError, RangeError."""
    if lengths is None:
        return np.full(B, T)
    array = integer_array(f"{where}: lengths", lengths.data if isinstance(lengths, Tensor) else lengths)
    if array.shape != (B,):
        raise ShapeError(f"{where}: lengths must have the shape ({B},), one for each row of idx, not {array.shape}")
    array = backends.move(array, "numpy")
    wrong = (array < 1) | (array > T)
    if wrong.any():
        row = int(wrong.argmax())
        raise RangeError(
            f"{where}: the length of row {row} is {int(array[row])}, but idx has rows of {T} tokens: lengths must be "
            f"in 1 .. {T}, and a text needs at least one token"
        )
    return array.astype(np.int64)


def without_padding(idx: Any, last: np.ndarray) -> Any:
    """idx (B, T) with id 0 after position last[i] of row i: padding may be any number, such as -100."""
    xp = backends.array_module(idx)
    return xp.where(xp.arange(idx.shape[1]) <= xp.asarray(last)[:, None], idx, 0)
