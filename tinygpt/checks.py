"""Validate numbers and arrays of token ids.

Settings come from constructors, command lines and JSON files, so they may be anything: a string, True, nan, a
NumPy integer. `whole_number` and `number` convert valid values to a plain `int` or `float`.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from .errors import DtypeError, ShapeError, UsageError


def whole_number(where: str, name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an int, at least `at_least`. `where` and `name` say in the error message what was being set."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise DtypeError(f"{where}: {name} must be a whole number, not {value!r}")
    if value < at_least:
        raise UsageError(f"{where}: {name} must be at least {at_least}, not {value}")
    return operator.index(value)


def number(
    where: str,
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a finite float within the given bounds (`at_least` and `at_most` are inclusive)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise DtypeError(f"{where}: {name} must be a number, not {value!r}")
    given = value
    try:
        value = float(given)
    except OverflowError:  # an integer beyond the largest float
        value = math.inf
    fits = (
        math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not fits:
        wanted = [
            f"{words} {bound:g}"
            for words, bound in (
                ("at least", at_least),
                ("above", above),
                ("at most", at_most),
                ("below", below),
            )
            if bound is not None
        ]
        raise UsageError(f"{where}: {name} must be {' and '.join(wanted) or 'finite'}, not {given}")
    return value


def check_tokens(tokens: Any) -> np.ndarray:
    """`tokens` as an integer array of shape (N,). A memory map stays one. Raises ShapeError, DtypeError."""
    array = np.asanyarray(tokens)
    if array.ndim != 1:
        raise ShapeError(f"tokens must have shape (N,), not {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise DtypeError(f"tokens must be integers, not {array.dtype}")
    return array
