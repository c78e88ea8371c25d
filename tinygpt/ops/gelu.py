"""GELU: the Gaussian error linear unit, in its tanh form and in its exact (erf) form.

GELU multiplies x by the probability that a standard normal variable lies below x: y = x * Phi(x).

The tanh form approximates Phi. With c = sqrt(2 / pi), a = 0.044715 and

    u   = c * (x + a * x**3)
    Phi ~ (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)) = s

(Since tanh(u) = (1 - exp(-2 u)) / (1 + exp(-2 u)), adding 1 and halving gives s, the logistic function of 2 u.) The
form with s needs only one exp, and it has no cancellation for negative x, where 1 + tanh(u) would lose its digits. So

    y = x * s

Derivation of the gradient. The product rule on x * s, then the chain rule on s, which depends on x through u:

    dy/dx = s * dx/dx + x * ds/dx = s + x * (ds/du) (du/dx)

Here dy/dx is the derivative itself; ds/du = 2 s (1 - s), as for any logistic function of 2 u, and
du/dx = c * (1 + 3 a x**2). So the gradient is

    dx = dy * (s + x * 2 * s * (1 - s) * c * (1 + 3 * a * x**2))

Computing 1 - s by subtraction would leave few correct digits where s is close to 1, and the factor x u' is large there.
So let t = exp(-2 |u|) and r = 1 / (1 + t). Then s is r for x >= 0 and t r for x < 0, and s (1 - s) is t r**2.

The erf form is y = x * Phi(x) with Phi(x) = (1 + erf(x / sqrt(2))) / 2, and the derivative of Phi is the normal density
phi(x) = exp(-x**2 / 2) / sqrt(2 pi). By the product rule again:

    dx = dy * (Phi(x) + x * phi(x))

Saved: only x. s and Phi are recomputed from it: one exp costs less than saving a second array as large as x. y is
recomputed too (`recompute`) if the operation that reads it needs it in its backward pass, as the matrix product after
a GELU does. dx is written over dy if nobody else holds dy.

Shapes: x and y have any shape.
Source: Hendrycks, Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, section 2. GPT-2 uses the tanh form.
"""

from __future__ import annotations

import math

from ..backends import array_module
from ..errors import UsageError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array
from ._shapes import require_floating
from .erf import erf, normal_cdf

C_TANH = math.sqrt(2.0 / math.pi)
A_TANH = 0.044715
SQRT_HALF = math.sqrt(0.5)
FAR = 40.0  # beyond +-FAR, y is exactly 0 or x, and dy/dx exactly 0 or 1; clipping x avoids infinity * 0


def gelu_composed(x: Tensor, approximate: str = "tanh") -> Tensor:
    """The oracle: the two formulas as they are usually written, of primitive differentiable operations."""
    if approximate == "tanh":
        u = C_TANH * (x + A_TANH * x * x * x)
        return 0.5 * x * (1.0 + u.tanh())
    return 0.5 * x * (1.0 + erf(SQRT_HALF * x))


@kernel
def gelu_forward(x: Array) -> Array:
    """x of any shape -> y of the same shape, tanh form."""
    xp = array_module(x)
    x = xp.maximum(x, -FAR)  # x's shape, as every array here
    u = C_TANH * x * (1.0 + A_TANH * x * x)
    return x / (1.0 + xp.exp(-2.0 * u))


@kernel
def gelu_backward(dy: Array, x: Array, out: Array | None = None) -> Array:
    """dy, x of one shape -> dx, tanh form. out: memory that a compiled body may use for dx, such as dy."""
    xp = array_module(x)
    x = xp.clip(x, -FAR, FAR)
    square = x * x
    u = C_TANH * x * (1.0 + A_TANH * square)
    t = xp.exp(-2.0 * xp.abs(u))  # at most 1
    r = 1.0 / (1.0 + t)
    s = xp.where(x < 0, t, 1.0) * r
    du_dx = C_TANH * (1.0 + 3.0 * A_TANH * square)
    return dy * (s + x * (2.0 * (t * r * r) * du_dx))


@kernel
def gelu_erf_forward(x: Array) -> Array:
    """x of any shape -> y of the same shape, erf form."""
    x = array_module(x).maximum(x, -FAR)
    return x * normal_cdf(x)


@kernel
def gelu_erf_backward(dy: Array, x: Array, out: Array | None = None) -> Array:
    """dy, x of one shape -> dx, erf form. out: as in gelu_backward."""
    xp = array_module(x)
    x = xp.clip(x, -FAR, FAR)
    density = xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return dy * (normal_cdf(x) + x * density)


class Gelu(Function):
    forward_kernel, backward_kernel = gelu_forward, gelu_backward
    recomputable = (0,)

    def forward(self, x: Array) -> Array:
        self.save(x)
        return self.forward_kernel(x.reshape(-1)).reshape(x.shape)

    def recompute(self, output: int) -> Array:
        (x,) = self.saved
        return self.forward_kernel(x.reshape(-1)).reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        rows = dy.reshape(-1)
        return self.backward_kernel(rows, x.reshape(-1), rows if self.may_overwrite else None).reshape(x.shape)


class GeluErf(Gelu):
    forward_kernel, backward_kernel = gelu_erf_forward, gelu_erf_backward


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """x * Phi(x), elementwise: approximate="tanh" (GPT-2's form) or "none" (exact, with erf).

    x: any shape, floating. Returns a tensor of x's shape. Raises DtypeError, UsageError.
    """
    require_floating("gelu", x=x)
    if approximate == "tanh":
        return Gelu.apply(x)
    if approximate == "none":
        return GeluErf.apply(x)
    raise UsageError(f"gelu: approximate must be 'tanh' or 'none', not {approximate!r}")
