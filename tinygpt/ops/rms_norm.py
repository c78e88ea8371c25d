"""Root-mean-square normalisation: LayerNorm without its mean and its offset.

Every row x of C numbers is divided by its root mean square, then given a learned scale:

    rstd = 1 / sqrt(sum(x**2) / C + eps)        norm = x * rstd        y = norm * weight

Derivation of the gradient. `weight` acts on each column alone, so over all rows

    dweight = sum(dy * norm)                    dnorm = dy * weight

A change of x_j changes norm_i directly (if i = j) and through rstd:

    d rstd / d x_j   = -1/2 * rstd**3 * 2 x_j / C = -rstd**2 * norm_j / C
    d norm_i / d x_j = [i = j] * rstd + x_i * d rstd / d x_j = rstd * ([i = j] - norm_i * norm_j / C)

Multiply by dnorm_i and sum over i:

    dx = rstd * (dnorm - norm * mean(dnorm * norm))

In words: normalisation undoes any stretch of the row, so we take out of dnorm the part that would only stretch it.
LayerNorm's gradient also takes out the part that would shift it.

Saved: x, weight and rstd, one number a row; `norm` is recomputed from them with one product. y can be recomputed from x
and weight (`recompute`), so the products that read it need not keep it either.

Shapes: x (..., C); weight (C,); rstd (N,) for N rows.
Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019, section 4, equation 4.
"""

from __future__ import annotations

import numpy as np

from ..backends import array_module
from ..checks import number
from ..errors import ShapeError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array
from ._shapes import require_floating


def rms_norm_composed(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """The oracle: the formulas above in primitive differentiable operations."""
    return x / ((x * x).mean(axis=-1, keepdims=True) + eps).sqrt() * weight


@kernel(statistics={"rstd": 1})
def rms_norm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """x (N, C), weight (C,) -> y (N, C), rstd (N,)."""
    xp = array_module(x)
    wide = x.astype(xp.float64)  # (N, C) squares of float32 may leave its range
    rstd = 1.0 / xp.sqrt((wide * wide).mean(axis=1) + eps)  # (N,)
    y = wide * rstd[:, None] * weight  # (N, C)
    return y.astype(x.dtype), rstd.astype(x.dtype)


@kernel(statistics={"weight_sums": 1})
def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    """dy, x (N, C), weight (C,), rstd (N,) -> dx (N, C), dweight (C,)."""
    norm = x * rstd[:, None]  # (N, C)
    dnorm = dy * weight  # (N, C)
    stretch = (dnorm * norm).mean(axis=1, dtype=np.float64)[:, None]  # (N, 1)
    dx = rstd[:, None] * (dnorm - norm * stretch)  # (N, C)
    dweight = (dy * norm).sum(axis=0, dtype=np.float64)  # (C,)
    return dx.astype(x.dtype), dweight.astype(x.dtype)


class RMSNorm(Function):
    recomputable = (0,)

    def forward(self, x: Array, weight: Array, *, eps: float) -> Array:
        y, rstd = rms_norm_forward(x.reshape(-1, x.shape[-1]), weight, eps)
        self.save(x, weight, rstd)
        self.eps = eps
        return y.reshape(x.shape)

    def recompute(self, output: int) -> Array:
        x, weight, _ = self.saved
        y, _ = rms_norm_forward(x.reshape(-1, x.shape[-1]), weight, self.eps)
        return y.reshape(x.shape)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        x, weight, rstd = self.saved
        C = x.shape[-1]
        dx, dweight = rms_norm_backward(dy.reshape(-1, C), x.reshape(-1, C), weight, rstd)
        return dx.reshape(x.shape), dweight


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Divide the last axis of x by its root mean square, then scale it by `weight`.

    x: (..., C). weight: (C,). eps is added to the mean square.
    Returns a tensor of x's shape. Raises ShapeError, DtypeError, UsageError.
    """
    require_floating("rms_norm", x=x, weight=weight)
    eps = number("rms_norm", "eps", eps, at_least=0)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"rms_norm: x needs a last axis of at least one element, it has shape {x.shape}")
    if weight.shape != x.shape[-1:]:
        raise ShapeError(
            f"rms_norm: weight must have shape {x.shape[-1:]} to fit x of shape {x.shape}, not {weight.shape}"
        )
    return RMSNorm.apply(x, weight, eps=eps)
