"""SiLU, the sigmoid linear unit, also called swish: x times its own logistic function.

    s = sigmoid(x) = 1 / (1 + exp(-x))        y = x * s

Derivation of the gradient. ds/dx = s (1 - s), so by the product rule

    dx = dy * (s + x * s * (1 - s))

With t = exp(-|x|) and r = 1 / (1 + t), s is r for x >= 0 and t r for x < 0, and s (1 - s) is t r**2: 1 - s as a
difference would have few digits where s is nearly 1.

Saved: only x. s is recomputed from it: one exp costs less than saving a second array as large as x. y is recomputed too
(`recompute`) if the operation that reads it needs it in its backward pass. dx is written over dy if nobody else holds
dy.

Shapes: x and y have any shape.
Source: Elfwing, Uchibe, Doya, "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in Reinforcement
Learning", 2017, section 2.
"""

from __future__ import annotations

from ..backends import array_module
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array
from ._shapes import require_floating

FAR = 750.0  # beyond it y is 0 or x and the slope 0 or 1, in float64 too, and x * 0 must not become infinity * 0


def silu_composed(x: Tensor) -> Tensor:
    """The oracle: the formula as it is usually written, in primitive differentiable operations."""
    return x * x.sigmoid()


@kernel
def silu_forward(x: Array) -> Array:
    """x of any shape -> y of that shape."""
    xp = array_module(x)
    x = xp.maximum(x, -FAR)  # x's shape, as every array here
    return x / (1.0 + xp.exp(-x))


@kernel
def silu_backward(dy: Array, x: Array, out: Array | None = None) -> Array:
    """dy, x of one shape -> dx. out: memory that a compiled body may put dx into, dy's for instance."""
    xp = array_module(x)
    x = xp.clip(x, -FAR, FAR)
    t = xp.exp(-xp.abs(x))  # at most 1
    r = 1.0 / (1.0 + t)
    s = xp.where(x < 0, t, 1.0) * r
    return dy * (s + x * (t * r * r))


class Silu(Function):
    recomputable = (0,)

    def forward(self, x: Array) -> Array:
        self.save(x)
        return self.recompute(0)

    def recompute(self, output: int) -> Array:
        (x,) = self.saved
        return silu_forward(x.reshape(-1)).reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        rows = dy.reshape(-1)
        return silu_backward(rows, x.reshape(-1), rows if self.may_overwrite else None).reshape(x.shape)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), elementwise.

    x: any shape, floating. Returns a tensor of x's shape. Raises DtypeError.
    """
    require_floating("silu", x=x)
    return Silu.apply(x)
