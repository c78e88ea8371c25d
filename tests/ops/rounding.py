"""How much of a result is rounding: the reference run again with every intermediate result rounded at random.

A fixed tolerance would be a guess. Instead the reference runs in float64 on arrays that move every result of every
arithmetic step by up to one float32 rounding, up or down: Monte Carlo arithmetic. How far the end result then moves is
what any float32 body may be off by, however it orders its steps; cancellation shows up by itself.

Source: Parker, "Monte Carlo Arithmetic", 1997, section 5. In a sum of n terms in one precision the rounding of a term
grows to sqrt(n) roundings: Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019. Where the
terms are one number repeated, the roundings are not independent: all may go the same way. Partial sums are half of the
whole on average, and each is off by half a rounding at most: a quarter of n roundings of each term, with one sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EXACT = {np.maximum, np.minimum, np.negative, np.absolute, np.sign, np.copysign}


class Rounding:
    """One choice of random roundings."""

    def __init__(self, eps: float, seed: int, in_sums: bool, in_products: bool = False, repeated: bool = False) -> None:
        """in_sums: sums are accumulated in the same precision, not in a higher one; in_products: those of matmul.
        repeated: the terms of sums may be one number repeated."""
        self.eps, self.rng, self.in_sums, self.in_products = eps, np.random.default_rng(seed), in_sums, in_products
        self.repeated = repeated

    def nudge(self, values: np.ndarray, times: float = 1.0, one_sign: bool = False) -> np.ndarray:
        moved = self.rng.uniform(0.5, 1.0, values.shape) * self.rng.choice(
            [-1.0, 1.0], () if one_sign else values.shape
        )
        return np.asarray(values * (1.0 + times * self.eps * moved))


class Rounded(np.ndarray):
    """A float64 array whose arithmetic rounds as `rounding` says."""

    rounding: Rounding

    def __array_finalize__(self, parent: Any) -> None:
        self.rounding = getattr(parent, "rounding", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        rounding = next(a.rounding for a in (*inputs, *(out or ())) if isinstance(a, Rounded))
        plain = [a.view(np.ndarray) if isinstance(a, Rounded) else a for a in inputs]
        if ufunc is np.add and method == "reduce" and rounding.in_sums and plain[0].size:
            result_size = max(ufunc.reduce(plain[0], **options).size, 1)
            terms = plain[0].size / result_size
            plain[0] = rounding.nudge(plain[0], terms / 2 if rounding.repeated else terms**0.5, rounding.repeated)
        if ufunc is np.matmul and rounding.in_products:
            plain[1] = rounding.nudge(plain[1], plain[0].shape[-1] ** 0.5)
        result = getattr(ufunc, method)(*plain, **options)
        if result is None or isinstance(result, tuple) or result.dtype.kind != "f":
            return result
        if ufunc not in EXACT:
            result = rounding.nudge(result)
        if out is not None:
            out[0].view(np.ndarray)[...] = result
            return out[0]
        return rounded(np.asarray(result), rounding)


def rounded(values: np.ndarray, rounding: Rounding) -> Rounded:
    array = values.view(Rounded)
    array.rounding = rounding
    return array
