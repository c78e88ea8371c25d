"""A statistic of each row, kept as the sum of two numbers.

A mean or a log-sum-exp can be large beside the differences that matter: at 1e8 neighbouring float32 numbers lie 8
apart, so exp(x - lse) with a rounded lse is wrong by any factor up to exp(4). Hence the last axis of size 2:

    parts[..., 0]    near: the statistic, rounded to the type of the arrays
    parts[..., 1]    rest: what rounding has cut off, rounded itself

x - near is exact wherever x is close to the statistic, and then (x - near) - rest has all the digits of its type. Of a
log-sum-exp, near is never below the greatest x of the row, so exp(x - near) is at most 1.

Source: Dekker, "A floating-point technique for extending the available precision", 1971: the rounding of a sum.
"""

from __future__ import annotations

from typing import Any

from ..backends import array_module


def two_parts(a: Any, b: Any, dtype: Any) -> Any:
    """a + b -> (..., 2) in `dtype`: near and rest.

    a, b: float64 arrays of one shape; where a + b loses digits, |a| must be the larger.
    """
    xp = array_module(a)
    near = (a + b).astype(dtype)
    return xp.stack([near, ((a - near) + b).astype(dtype)], axis=-1)
