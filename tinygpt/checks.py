"""Options that are numbers: accepted, or refused with one sentence.

Settings come from constructors, command lines and JSON files, so they may be anything: a string, True, nan, a
NumPy integer. These two functions turn what makes sense into a plain `int` or `float`.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from .errors import DtypeError, UsageError


def whole_number(where: str, name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an int not below `at_least`. `where` and `name` say in the error what was being set."""
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
    """`value` as a finite float within the bounds given (`at_least` and `at_most` include the bound itself)."""
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
