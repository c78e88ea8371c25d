"""exp, log, sqrt, tanh, sigmoid, relu and abs: each element of y depends on one element of x.

    y = exp(x)              dx = dy * y
    y = log(x)              dx = dy / x
    y = sqrt(x)             dx = dy / (2 y)
    y = tanh(x)             dx = dy * (1 - y) (1 + y)
    y = 1 / (1 + exp(-x))   dx = dy * y * (1 - y)
    y = max(x, 0)           dx = dy * [x > 0]
    y = |x|                 dx = dy * sign(x)

tanh's derivative, 1 - y**2, is computed as a product, since y**2 rounded near 1 would lose digits. relu and abs have
the gradient 0 at their kinks. Where x is NaN, relu hands dy on.

Saved: y if the derivative can be written in terms of y, since y is likely to be kept by another operation anyway; x for
log and abs.

`sigmoid` never computes the exponential of a positive number, which could overflow: with e = exp(-|x|),

    sigmoid(x) = ([x >= 0] + [x < 0] e) / (1 + e)

No oracle: these are primitive operations. The tests check them against differences, and tanh, sigmoid, sqrt, relu and
abs against formulas in the others.

Outside their domains log and sqrt give NaN or -infinity without a warning; `detect_anomaly` finds out where.

Shapes: x and y have the same, any shape.
Source: the derivatives are elementary; for tanh and the logistic function in terms of themselves: Rumelhart, Hinton,
Williams, "Learning representations by back-propagating errors", 1986, equation 2.
"""

from __future__ import annotations

from ..backends import array_module
from ..function import Function
from ..tensor import Tensor, as_tensor
from ..typing import Array, TensorLike
from ._shapes import require_floating


class Exp(Function):
    def forward(self, x: Array) -> Array:
        y = array_module(x).exp(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        return dy * y


class Log(Function):
    def forward(self, x: Array) -> Array:
        self.save(x)
        return array_module(x).log(x)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        return dy / x


class Sqrt(Function):
    def forward(self, x: Array) -> Array:
        y = array_module(x).sqrt(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        return dy / (y + y)


class Tanh(Function):
    def forward(self, x: Array) -> Array:
        y = array_module(x).tanh(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        return dy * ((1 - y) * (1 + y))


class Sigmoid(Function):
    def forward(self, x: Array) -> Array:
        xp = array_module(x)
        e = xp.exp(-xp.abs(x))  # from 0 to 1
        y = xp.where(x < 0, e, 1) / (1 + e)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        return dy * y * (1 - y)


class Relu(Function):
    def forward(self, x: Array) -> Array:
        y = array_module(x).maximum(x, 0)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        return array_module(y).where(y <= 0, 0, dy)


class Abs(Function):
    def forward(self, x: Array) -> Array:
        self.save(x)
        return array_module(x).abs(x)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        return dy * array_module(x).sign(x)


def exp(x: TensorLike) -> Tensor:
    """e ** x. Raises DtypeError unless x is floating-point."""
    return Exp.apply(_floating("exp", x))


def log(x: TensorLike) -> Tensor:
    """The natural logarithm. Raises DtypeError unless x is floating-point."""
    return Log.apply(_floating("log", x))


def sqrt(x: TensorLike) -> Tensor:
    """The square root. Raises DtypeError unless x is floating-point."""
    return Sqrt.apply(_floating("sqrt", x))


def tanh(x: TensorLike) -> Tensor:
    """The hyperbolic tangent. Raises DtypeError unless x is floating-point."""
    return Tanh.apply(_floating("tanh", x))


def sigmoid(x: TensorLike) -> Tensor:
    """1 / (1 + exp(-x)), without overflow. Raises DtypeError unless x is floating-point."""
    return Sigmoid.apply(_floating("sigmoid", x))


def relu(x: TensorLike) -> Tensor:
    """The larger of x and 0. Raises DtypeError unless x is floating-point."""
    return Relu.apply(_floating("relu", x))


def abs(x: TensorLike) -> Tensor:
    """The absolute value; integers are taken too."""
    return Abs.apply(as_tensor(x))


def _floating(operation: str, x: TensorLike) -> Tensor:
    x = as_tensor(x)
    require_floating(operation, x=x)
    return x
