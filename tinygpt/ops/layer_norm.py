"""Layer normalisation.

Each row x of C numbers is shifted to mean 0 and scaled to variance 1. Then it is multiplied by a learned weight, and a
learned bias is added:

    mean = sum(x) / C        var = sum((x - mean)**2) / C        rstd = 1 / sqrt(var + eps)
    norm = (x - mean) * rstd
    y    = norm * weight + bias

Derivation of the gradient. The easy part first: `weight` and `bias` act on each column separately, so, summing over all
rows,

    dbias = sum(dy)          dweight = sum(dy * norm)            dnorm = dy * weight

(The sums over the rows are `unbroadcast`.) Now x. A change of x_j changes norm_i in three ways: directly (if i = j),
through the mean, and through rstd. One after the other:

    d mean / d x_j = 1/C
    d var / d x_j  = 2/C * sum over i of (x_i - mean) * ([i = j] - 1/C) = 2/C * (x_j - mean)
    d rstd / d x_j = -1/2 * (var + eps)**(-3/2) * d var / d x_j = -rstd**3 * (x_j - mean) / C = -rstd**2 * norm_j / C

In the second line, 1/C drops out because the deviations x_i - mean add up to zero. Now the product rule on
norm_i = (x_i - mean) * rstd:

    d norm_i / d x_j = ([i = j] - 1/C) * rstd + (x_i - mean) * d rstd / d x_j
                     = rstd * ([i = j] - 1/C - norm_i * norm_j / C)

Multiply by dnorm_i and sum over i:

    dx = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm))

In words: normalisation undoes any shift and any stretch of the row. So we take out of dnorm the part that would shift
the row (its mean) and the part that would stretch it (its projection on norm).

Saved: x, weight, bias, mean, rstd. `norm` is recomputed from these with one subtraction and one multiplication, which
is cheaper than saving an array as large as x. rstd is one number for each row, mean is two, near + rest
(_two_parts.py): if the mean is large compared with the deviations from it, rounding it would give a different `norm`
than in the forward pass. y can be recomputed from x, weight and bias (`recompute`), so the matrix products that read y
need not save it.

Shapes: x (..., C); weight, bias (C,); mean (N, 2), rstd (N,) for N rows. Without a bias the kernels get None for it and
return None as its gradient.
Source: Ba, Kiros, Hinton, "Layer Normalization", 2016, section 3, equation 4.
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
from ._two_parts import two_parts


def layer_norm_composed(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The oracle: the formula above, of primitive differentiable operations."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered * centered).mean(axis=-1, keepdims=True)
    scaled = centered / (variance + eps).sqrt() * weight
    return scaled if bias is None else scaled + bias


@kernel(statistics={"mean": 1, "rstd": 2})
def layer_norm_forward(x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """x (N, C), weight (C,), bias (C,) or None -> y (N, C), mean (N, 2), rstd (N,)."""
    xp = array_module(x)
    mean = x.mean(axis=1, dtype=xp.float64)  # (N,) long sums in double precision
    centered = x - mean[:, None]  # (N, C)
    variance = (centered * centered).mean(axis=1)  # (N,)
    rstd = 1.0 / xp.sqrt(variance + eps)  # (N,)
    y = centered * rstd[:, None] * weight  # (N, C)
    if bias is not None:
        y += bias
    return y.astype(x.dtype), two_parts(mean, xp.zeros_like(mean), x.dtype), rstd.astype(x.dtype)


@kernel(statistics={"weight_sums": 1, "bias_sums": 2})
def layer_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, has_bias: bool = True
) -> tuple[Array, Array, Array | None]:
    """dy, x (N, C), weight (C,), mean (N, 2), rstd (N,) -> dx (N, C), dweight (C,), dbias (C,) or None."""
    mean = mean.sum(axis=1, dtype=np.float64)  # (N,) as exact as in the forward pass
    norm = ((x - mean[:, None]) * rstd[:, None]).astype(x.dtype)  # (N, C)
    dnorm = dy * weight  # (N, C)
    shift = dnorm.mean(axis=1, dtype=np.float64)[:, None]  # (N, 1)
    stretch = (dnorm * norm).mean(axis=1, dtype=np.float64)[:, None]  # (N, 1)
    dx = rstd[:, None] * (dnorm - shift - norm * stretch)  # (N, C)
    dweight = (dy * norm).sum(axis=0, dtype=np.float64)  # (C,)
    dbias = dy.sum(axis=0, dtype=np.float64).astype(x.dtype) if has_bias else None  # (C,)
    return dx.astype(x.dtype), dweight.astype(x.dtype), dbias


class LayerNorm(Function):
    recomputable = (0,)

    def forward(self, x: Array, weight: Array, bias: Array | None = None, *, eps: float) -> Array:
        rows = x.reshape(-1, x.shape[-1])  # (N, C)
        y, mean, rstd = layer_norm_forward(rows, weight, bias, eps)
        self.save(x, weight, bias, mean, rstd)
        self.eps = eps
        return y.reshape(x.shape)

    def recompute(self, output: int) -> Array:
        x, weight, bias, _, _ = self.saved
        y, _, _ = layer_norm_forward(x.reshape(-1, x.shape[-1]), weight, bias, self.eps)
        return y.reshape(x.shape)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        x, weight, bias, mean, rstd = self.saved
        C, has_bias = x.shape[-1], bias is not None
        dx, dweight, dbias = layer_norm_backward(dy.reshape(-1, C), x.reshape(-1, C), weight, mean, rstd, has_bias)
        dx = dx.reshape(x.shape)
        return (dx, dweight, dbias) if has_bias else (dx, dweight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise the last axis of x to mean 0 and variance 1, then scale by `weight` and shift by `bias`.

    x: (..., C). weight, bias: (C,); bias may be None. eps is added to the variance.
    Returns a tensor of x's shape. Raises ShapeError, DtypeError, UsageError.
    """
    require_floating("layer_norm", x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    eps = number("layer_norm", "eps", eps, at_least=0)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"layer_norm: x needs a last axis of at least one element, it has shape {x.shape}")
    expected = (x.shape[-1],)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != expected:
            raise ShapeError(
                f"layer_norm: {name} must have shape {expected} to fit x of shape {x.shape}, not {parameter.shape}"
            )
    return LayerNorm.apply(x, weight, *(() if bias is None else (bias,)), eps=eps)
