"""Softmax and log-softmax along an axis.

A row x of C numbers becomes C probabilities, each proportional to exp(x_j):

    y_j = exp(x_j) / sum over l of exp(x_l) = exp(x_j - m) / sum over l of exp(x_l - m),     m = max over l of x_l
    log_softmax: z_j = log(y_j) = x_j - m - log(sum over l of exp(x_l - m))

Shifting the whole row does not change the result. We shift by the maximum: then every exponent is at most 0, so nothing
overflows, and one is exactly 0, so the sum is at least 1. Entries of -infinity get probability 0. A row of only
-infinity has no softmax and gives nan (0 / 0), as in PyTorch.

Derivation of the gradient. With S the sum, d y_j / d x_l = exp(x_j) [j = l] / S - exp(x_j) exp(x_l) / S**2, that is

    d y_j / d x_l = y_j ([j = l] - y_l)           dx_l = y_l * (dy_l - sum over j of dy_j y_j)

In words: only the difference between dy_l and the average of dy, weighted by y, counts. The probabilities always add up
to 1, so a gradient that is the same for all of them has no effect. For the logarithm, d z_j / d x_l = [j = l] - y_l:

    dx_l = dz_l - exp(z_l) * sum over j of dz_j

Saved: only the output; both gradients can be written in terms of it.

Shapes: x, y any shape with at least one axis; the kernels see N rows of C, the chosen axis last.
Source: Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs", 1990, for softmax; for the
shift: Blanchard, Higham, Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical
Analysis, 2021.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import array_module
from ..errors import ShapeError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array
from ._shapes import axis_or_dim, normalize_axis, require_floating


def softmax_composed(x: Tensor, axis: int = -1) -> Tensor:
    """The oracle: exponentials divided by their sum. The maximum is a constant here: its gradient would cancel."""
    e = (x - Tensor(x.data.max(axis=axis, keepdims=True))).exp()
    return e / e.sum(axis=axis, keepdims=True)


def log_softmax_composed(x: Tensor, axis: int = -1) -> Tensor:
    """The oracle of log_softmax."""
    shifted = x - Tensor(x.data.max(axis=axis, keepdims=True))
    return shifted - shifted.exp().sum(axis=axis, keepdims=True).log()


@kernel
def softmax_forward(x: Array) -> Array:
    """x (N, C) -> y (N, C)."""
    xp = array_module(x)
    e = xp.exp(x - x.max(axis=1, keepdims=True))  # (N, C)
    total = e.sum(axis=1, keepdims=True, dtype=xp.float64)  # (N, 1)
    return e / total.astype(x.dtype)


@kernel
def softmax_backward(dy: Array, y: Array) -> Array:
    """dy, y (N, C) -> dx (N, C)."""
    dot = (dy * y).sum(axis=1, keepdims=True, dtype=np.float64)  # (N, 1)
    return y * (dy - dot.astype(y.dtype))


@kernel
def log_softmax_forward(x: Array) -> Array:
    """x (N, C) -> z (N, C)."""
    xp = array_module(x)
    shifted = x - x.max(axis=1, keepdims=True)  # (N, C)
    total = xp.exp(shifted).sum(axis=1, keepdims=True, dtype=xp.float64)  # (N, 1)
    return shifted - xp.log(total).astype(x.dtype)


@kernel
def log_softmax_backward(dz: Array, z: Array) -> Array:
    """dz, z (N, C) -> dx (N, C)."""
    total = dz.sum(axis=1, keepdims=True, dtype=np.float64)  # (N, 1)
    return dz - array_module(z).exp(z) * total.astype(z.dtype)


class Softmax(Function):
    forward_kernel, backward_kernel = softmax_forward, softmax_backward

    def forward(self, x: Array, axis: int) -> Array:
        self.axis = axis
        y = self.on_rows(self.forward_kernel, x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        return self.on_rows(self.backward_kernel, dy, y)

    def on_rows(self, function: Any, *arrays: Array) -> Array:
        """Call a kernel on the arrays as (N, C), with C along `axis`. The result has the arrays' shape."""
        if arrays[0].size == 0:
            return array_module(arrays[0]).empty_like(arrays[0])
        moved = [array_module(array).moveaxis(array, self.axis, -1) for array in arrays]  # (..., C)
        result = function(*(array.reshape(-1, array.shape[-1]) for array in moved))  # (N, C)
        return array_module(result).moveaxis(result.reshape(moved[0].shape), -1, self.axis)


class LogSoftmax(Softmax):
    forward_kernel, backward_kernel = log_softmax_forward, log_softmax_backward


def softmax(x: Tensor, axis: int = -1, *, dim: int | None = None) -> Tensor:
    """Probabilities along `axis`: exp(x) divided by its sum there.

    x: any shape with at least one axis, floating. A row of only -infinity gives nan. Returns a tensor of x's shape.
    dim: PyTorch's name for axis. Raises ShapeError, RangeError, DtypeError.
    """
    return Softmax.apply(x, axis=_checked_axis("softmax", x, axis_or_dim("softmax", axis, dim, -1)))


def log_softmax(x: Tensor, axis: int = -1, *, dim: int | None = None) -> Tensor:
    """log(softmax(x)) along `axis`, without losing digits to the logarithm of a rounded probability.

    x: any shape with at least one axis, floating. A row of only -infinity gives nan. Returns a tensor of x's shape.
    dim: PyTorch's name for axis. Raises ShapeError, RangeError, DtypeError.
    """
    return LogSoftmax.apply(x, axis=_checked_axis("log_softmax", x, axis_or_dim("log_softmax", axis, dim, -1)))


def _checked_axis(operation: str, x: Tensor, axis: int) -> int:
    require_floating(operation, x=x)
    if x.ndim == 0:
        raise ShapeError(f"{operation}: x needs at least one axis, it is a single number of shape ()")
    return normalize_axis(operation, axis, x.ndim)
