"""Bias and GELU in one pass: the step between the two linear layers of a transformer's MLP.

    y = gelu(x + bias)

This is the tanh form of gelu.py.

Derivation of the gradient. Let z = x + bias. Then dz/dx is 1, and every row uses its own copy of the bias, so dbias
is the sum over the rows:

    dx = gelu'(x + bias) * dy          dbias = unbroadcast(dx, (C,))

Saved: x and bias. The backward pass recomputes x + bias: that is one addition, while saving it would take another array
as large as x, which is the model's largest activation (4 C columns). It also recomputes y for the matrix product that
follows (`recompute`), and writes dx over dy if nobody else holds dy. So the backward pass, too, never holds more than
two arrays of this size.

Shapes: x (..., C), bias (C,).
Source: Hendrycks, Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, section 2, for the GELU.
"""

from __future__ import annotations

import numpy as np

from ..errors import ShapeError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array
from ._arguments import require_same_dtype
from .gelu import gelu_backward, gelu_composed, gelu_forward


def bias_gelu_composed(x: Tensor, bias: Tensor) -> Tensor:
    """The oracle: an addition, then a GELU of primitive operations."""
    return gelu_composed(x + bias)


@kernel
def bias_gelu_forward(x: Array, bias: Array) -> Array:
    """x (N, C), bias (C,) -> y (N, C)."""
    return gelu_forward.reference(x + bias)  # (N, C)


@kernel(statistics={"bias_sums": 1})
def bias_gelu_backward(dy: Array, x: Array, bias: Array, out: Array | None = None) -> tuple[Array, Array]:
    """dy, x (N, C), bias (C,) -> dx (N, C), dbias (C,). out: memory that a compiled body may use for dx; may be dy."""
    dx = gelu_backward.reference(dy, x + bias)  # (N, C)
    return dx, dx.sum(axis=0, dtype=np.float64).astype(x.dtype)


class BiasGelu(Function):
    recomputable = (0,)

    def forward(self, x: Array, bias: Array) -> Array:
        self.save(x, bias)
        return bias_gelu_forward(x.reshape(-1, x.shape[-1]), bias).reshape(x.shape)

    def recompute(self, output: int) -> Array:
        x, bias = self.saved
        return bias_gelu_forward(x.reshape(-1, x.shape[-1]), bias).reshape(x.shape)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        x, bias = self.saved
        C = x.shape[-1]
        rows = dy.reshape(-1, C)  # (N, C)
        dx, dbias = bias_gelu_backward(rows, x.reshape(-1, C), bias, rows if self.may_overwrite else None)
        return dx.reshape(x.shape), dbias


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) in the tanh form, in one pass.

    x: (..., C). bias: (C,). Returns a tensor of x's shape. Raises ShapeError, DtypeError.
    """
    require_same_dtype("bias_gelu", x=x, bias=bias)
    if x.ndim == 0 or x.shape[-1] == 0 or bias.shape != x.shape[-1:]:
        raise ShapeError(f"bias_gelu: x (..., C) and bias (C,) must share C >= 1, not {x.shape} and {bias.shape}")
    return BiasGelu.apply(x, bias)
