"""A statistic of each row (a mean, or a log-sum-exp) stored as the sum of two numbers.

Such a statistic can be large compared with the differences that matter. Near 1e8, neighbouring float32 numbers are 8
apart, so lse may be rounded by up to 4, and exp(x - lse) may be wrong by a factor of up to exp(4). So we store two
numbers along a last axis of size 2:

    parts[..., 0]    near: the statistic, rounded to the type of the arrays
    parts[..., 1]    rest: the rounding error of near, itself rounded

If x is close to the statistic, x - near is exact, and then (x - near) - rest is accurate to the last digit of its type.
For a log-sum-exp, near is never below the largest x of the row, so exp(x - near) is at most 1.

Source: Dekker, "A floating-point technique for extending the available precision", 1971: the rounding of a sum.
"""

from __future__ import annotations

from ..backends import array_module
from ..typing import Array, DTypeLike


def two_parts(a: Array, b: Array, dtype: DTypeLike) -> Array:
    """a + b -> (..., 2) in `dtype`: near and rest.

    a, b: float64 arrays of one shape. Wherever a + b is rounded, |a| must be larger than |b|.
    """
    xp = array_module(a)
    near = (a + b).astype(dtype)
    return xp.stack([near, ((a - near) + b).astype(dtype)], axis=-1)
