"""The error function and the normal distribution function.

    erf(x) = 2 / sqrt(pi) * integral from 0 to x of exp(-t**2) dt
    Phi(x) = (1 + erf(x / sqrt(2))) / 2

Phi(x) is the probability that a standard normal variable lies below x.

NumPy has neither, so we compute them here. We use three facts.

1. For z >= 0 let erfc(z) = 1 - erf(z). It falls like exp(-z**2) / z. Divide it by both factors, and what is left,

       g(w) = exp(z**2) * erfc(z) * (z + 3) / 3        w = (z - 3) / (z + 3)        z = 3 (1 + w) / (1 - w)

   is smooth on the whole half line, which w maps to [-1, 1). TAIL is the Chebyshev expansion of g to degree 22,
   computed with 60 digits (g at 120 Chebyshev nodes, discrete cosine transform) and rewritten in powers of w. The
   coefficients shrink from 0.36 to 2e-12, so Horner's rule loses no accuracy. The largest relative error of g in
   float64 is 7e-16.

2. erf is odd, so Phi(x) = erfc(|x| / sqrt(2)) / 2 for x < 0, and one minus that for x >= 0. The negative side needs no
   subtraction, so Phi(-6) has all its digits; 1 + erf(-6 / sqrt(2)) would have only seven.

3. Near zero, erf(x) = 1 - erfc(x) would lose the digits of a small x, so for |x| < 1/2 we sum the Maclaurin series:

       erf(x) = 2 / sqrt(pi) * sum over n of (-1)**n * x**(2 n + 1) / (n! * (2 n + 1))

   Thirteen terms leave a remainder below 1e-18.

Derivation of the gradient. The derivative of an integral with respect to its upper limit is the integrand:

    dx = dy * 2 / sqrt(pi) * exp(-x**2)

Saved: x.

No oracle: erf is not composed of other operations. The tests compare it with `math.erf` and check differences.

Shapes: any.
Source: the change of variable and the factor are Schonfelder's, "Chebyshev Expansions for the Error and
Related Functions", Mathematics of Computation 32, 1978; the coefficients were computed for this file.
"""

from __future__ import annotations

import math

from ..backends import array_module
from ..function import Function
from ..tensor import Tensor
from ..typing import Array
from ._shapes import require_floating

TAIL = (
    0.3580023023627799, -0.294464817723293, 0.19674278570136933, -0.10348908730032487,
    0.039842587095666314, -0.008942411537958437, -0.00040413887394316183, 0.0010113539579816233,
    -0.00018276991424949872, -9.225899997789508e-05, 3.585392363681283e-05, 1.013157867515692e-05,
    -5.823857407636014e-06, -1.5801189369395114e-06, 9.225829640201545e-07, 3.2798388174367714e-07,
    -1.3722842699707078e-07, -7.241314802770049e-08, 1.6652640553604126e-08, 1.3174436327280305e-08,
    -1.1893885619150114e-09, -1.3433763579084274e-09, 2.3183140785839886e-12,
)  # fmt: skip
SERIES = tuple((-1) ** n * 2.0 / math.sqrt(math.pi) / (math.factorial(n) * (2 * n + 1)) for n in range(13))


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Horner's rule, in place on one array of x's shape. coefficients: lowest degree first."""
    total = array_module(x).full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= x
        total += coefficient
    return total


def _erfc_positive(z: Array) -> Array:
    """erfc(z) for z >= 0, any shape, in z's dtype."""
    xp = array_module(z)
    z = xp.minimum(z, 30.0)  # erfc(30) is zero even in float64; w would be nan for an infinite z
    w = (z - 3.0) / (z + 3.0)
    return xp.exp(-z * z) * (3.0 / (z + 3.0)) * _polynomial(TAIL, w)


def normal_cdf(x: Array) -> Array:
    """Phi(x) of an array of any shape, in its dtype."""
    xp = array_module(x)
    tail = 0.5 * _erfc_positive(xp.abs(x) * math.sqrt(0.5))
    return xp.where(x < 0, tail, 1.0 - tail)


def erf_array(x: Array) -> Array:
    """erf(x) of an array of any shape, in its dtype. Computed in float64, so that the result is rounded only once."""
    xp, dtype = array_module(x), x.dtype
    x = x.astype("float64")
    far = xp.copysign(1.0 - _erfc_positive(xp.abs(x)), x)
    small = xp.clip(x, -0.5, 0.5)
    near = small * _polynomial(SERIES, small * small)
    return xp.where(xp.abs(x) < 0.5, near, far).astype(dtype)


class Erf(Function):
    def forward(self, x: Array) -> Array:
        self.save(x)
        return erf_array(x)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        return dy * ((2.0 / math.sqrt(math.pi)) * array_module(x).exp(-x * x))


def erf(x: Tensor) -> Tensor:
    """The error function, elementwise. x: any shape, floating. Returns x's shape. Raises DtypeError."""
    require_floating("erf", x=x)
    return Erf.apply(x)
