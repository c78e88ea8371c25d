"""Validate numbers, settings and arrays of token ids.

Settings come from constructors, command lines and JSON files, so they may be anything: a string, True, nan, a
NumPy integer. `whole_number` and `number` convert valid values to a plain `int` or `float`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .errors import DtypeError, ShapeError, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def whole_number(where: str, name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an int, at least `at_least`. `where` and `name`, for the error message: what was being set."""
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


def from_settings(where: str, made: type[Settings], settings: Mapping[str, Any]) -> Settings:
    """An instance of the dataclass `made` with these settings. Raises UsageError naming an unknown or missing one."""
    fields = {field.name: field for field in dataclasses.fields(made)}
    for name in settings:
        if name not in fields:
            raise UsageError(f"{where}: there is no setting {name!r}: the settings are {', '.join(fields)}")
    missing = [name for name in fields if name not in settings and fields[name].default is dataclasses.MISSING]
    if missing:
        raise UsageError(f"{where}: the settings lack {', '.join(missing)}")
    return made(**settings)


def integer_array(what: str, value: Any, flat: bool = False, to_do: str = "") -> Any:
    """A NumPy or CuPy array as it is, or nested lists as a NumPy array; its dtype must be an integer type.

    what: the array, in an error message. flat: it must have shape (N,). to_do: the end of a message about its shape.
    Raises DtypeError, ShapeError.
    """
    wanted = f"{what} must be integers{' of shape (N,)' if flat else ''}"
    array = value
    if isinstance(value, np.generic) or not hasattr(value, "dtype"):
        try:
            array = np.asarray(value)
        except ValueError:
            to_do = to_do or ": pad them to the same length"
            raise ShapeError(f"{wanted}, not rows that differ in length{to_do}") from None
    if array.size == 0 and array.dtype == np.float64:  # from an empty list, which has no dtype
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{wanted}, not {array.dtype} {array.shape}: convert with .astype('int64')")
    if flat and array.ndim != 1:
        raise ShapeError(f"{wanted}, not {array.dtype} {array.shape}{to_do}")
    return array


def check_tokens(tokens: Any) -> np.ndarray:
    """`tokens` as an integer array of shape (N,). A memory map stays one. Raises ShapeError, DtypeError."""
    return np.asanyarray(integer_array("tokens", tokens, flat=True))
