"""Residual addition, dropout and layer normalisation in one pass: the step between two sublayers of a transformer.

    sum        = residual + dropout(x + x_bias)
    normalised = layer_norm(sum)

sum continues in the residual stream, and normalised is the input of the next sublayer. x is the output of a projection,
without its bias. Done one after the other, the four steps would make five reads and four writes of (N, C) arrays; done
together, they make two reads and two writes.

Derivation of the gradient. `sum` is used twice, so two gradients add up: dsum, which comes from the residual stream,
and the gradient of layer normalisation (layer_norm.py):

    dresidual = dsum + layer_norm'(dnormalised)
    dx        = dresidual * keep / (1 - p)
    dx_bias   = unbroadcast(dx, (C,))

keep is the mask of dropout.py, dx_bias is the sum of dx over the rows, and dweight, dbias are layer normalisation's
own.

Saved: sum, weight, bias, mean, rstd, and the key of the mask. residual and x are not needed: the addition is linear,
and the norm depends on them only through `sum`, which is an output and exists anyway. `normalised` can be recomputed
from `sum`, weight and bias (`recompute`), so the matrix product that reads it need not save it.

Shapes: residual, x, sum, normalised (..., C); x_bias, weight, bias (C,), each bias or None; mean (N, 2), rstd (N,) for
N rows.
Source: pre-norm residual blocks: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section
2.3; the parts: layer_norm.py, dropout.py.
"""

from __future__ import annotations

from ..checks import number
from ..errors import ShapeError
from ..function import Function
from ..kernel import kernel
from ..random import Generator
from ..tensor import Tensor
from ..typing import Array
from ._arguments import mask_key, require_probability, require_same_dtype
from ._shapes import zeros
from .dropout import dropout_apply, dropout_composed
from .layer_norm import layer_norm_backward, layer_norm_composed, layer_norm_forward
from .linear import column_sum


def residual_layer_norm_composed(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    x_bias: Tensor | None = None,
    eps: float = 1e-5,
    p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
) -> tuple[Tensor, Tensor]:
    """The oracle: the two lines above, of primitive differentiable operations."""
    update = x if x_bias is None else x + x_bias
    if p > 0.0:
        update = dropout_composed(update, p, seed, stream)
    total = residual + update
    return total, layer_norm_composed(total, weight, bias, eps)


@kernel(statistics={"mean": 2, "rstd": 3})
def residual_layer_norm_forward(
    residual: Array,
    x: Array,
    x_bias: Array | None,
    weight: Array,
    bias: Array | None,
    eps: float,
    p: float,
    seed: int,
    stream: int,
    first_row: int = 0,
) -> tuple[Array, Array, Array, Array]:
    """residual, x (N, C), x_bias, weight, bias (C,) -> sum (N, C), normalised (N, C), mean (N, 2), rstd (N,)."""
    update = x if x_bias is None else x + x_bias  # (N, C)
    if p > 0.0:
        update = dropout_apply.reference(update, p, seed, stream, first_row)  # (N, C)
    total = residual + update  # (N, C)
    return total, *layer_norm_forward.reference(total, weight, bias, eps)


@kernel(statistics={"x_bias_sums": 2, "weight_sums": 3, "bias_sums": 4})
def residual_layer_norm_backward(
    dy: Array,
    dsum: Array,
    total: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    p: float,
    seed: int,
    stream: int,
    has_x_bias: bool,
    has_bias: bool,
    first_row: int = 0,
) -> tuple[Array, Array, Array | None, Array, Array | None]:
    """dy, dsum, total (N, C), weight (C,), mean (N, 2), rstd (N,) -> dresidual, dx (N, C), dx_bias, dweight, dbias

    (C,). dx is dresidual itself when nothing was dropped; dx_bias and dbias are None where there is no such bias.
    """
    dtotal, dweight, dbias = layer_norm_backward.reference(dy, total, weight, mean, rstd, has_bias)
    dresidual = dsum + dtotal  # (N, C)
    dx = dresidual if p == 0.0 else dropout_apply.reference(dresidual, p, seed, stream, first_row)  # (N, C)
    dx_bias = dx.sum(axis=0, dtype="float64").astype(dx.dtype) if has_x_bias else None  # (C,)
    return dresidual, dx, dx_bias, dweight, dbias


class ResidualLayerNorm(Function):
    recomputable = (1,)

    def forward(
        self,
        residual: Array,
        x: Array,
        weight: Array,
        *biases: Array,
        eps: float,
        has_biases: tuple[bool, bool],
        key: tuple[float, int, int, int],
    ) -> tuple[Array, Array]:
        given = iter(biases)
        x_bias, bias = (next(given) if present else None for present in has_biases)
        C = x.shape[-1]
        total, y, mean, rstd = residual_layer_norm_forward(
            residual.reshape(-1, C), x.reshape(-1, C), x_bias, weight, bias, eps, *key
        )
        self.save(total, weight, bias, mean, rstd)
        self.eps, self.key, self.has_biases, self.shape = eps, key, has_biases, x.shape
        return total.reshape(x.shape), y.reshape(x.shape)

    def recompute(self, output: int) -> Array:
        total, weight, bias, _, _ = self.saved
        return layer_norm_forward(total, weight, bias, self.eps)[0].reshape(self.shape)

    def backward(self, dsum: Array | None, dy: Array | None) -> tuple[Array | None, ...]:
        total, weight, _, mean, rstd = self.saved
        if dy is None:  # `normalised` was not used, so weight and bias have no gradient
            assert dsum is not None  # or nothing of this node was used
            return self.backward_of_sum(dsum)
        if dsum is None:
            dsum = zeros(dy.shape, dy)
        dresidual, dx, dx_bias, dweight, dbias = residual_layer_norm_backward(
            dy.reshape(total.shape), dsum.reshape(total.shape), total, weight, mean, rstd, *self.key[:3],
            *self.has_biases, self.key[3],
        )  # fmt: skip
        biases = [d for d, present in zip((dx_bias, dbias), self.has_biases, strict=True) if present]
        return dresidual.reshape(dy.shape), dx.reshape(dy.shape), dweight, *biases

    def backward_of_sum(self, dsum: Array) -> tuple[Array | None, ...]:
        """The gradients if only `sum` was used."""
        rows = dsum.reshape(-1, dsum.shape[-1])  # (N, C)
        dx = dropout_apply(rows, *self.key) if self.key[0] > 0.0 else rows  # (N, C)
        biases = [column_sum(dx)] if self.has_biases[0] else []
        return dsum, dx.reshape(dsum.shape), None, *biases, *([None] if self.has_biases[1] else [])


def residual_layer_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    x_bias: Tensor | None = None,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum, normalised): sum = residual + dropout(x + x_bias); normalised = layer_norm(sum, weight, bias, eps).

    residual, x: (..., C) of one shape. weight, bias, x_bias: (C,); either bias may be None. dropout_p: in [0, 1), used
    only if training. generator: draws the mask; None means tinygpt.random.default_generator.
    Returns two tensors of x's shape. Raises ShapeError, DtypeError, RangeError, UsageError.
    """
    optional = {"bias": bias, "x_bias": x_bias}
    given = {"weight": weight} | {name: tensor for name, tensor in optional.items() if tensor is not None}
    require_same_dtype("residual_layer_norm", residual=residual, x=x, **given)
    if x.ndim == 0 or x.shape[-1] == 0 or residual.shape != x.shape:
        raise ShapeError(
            f"residual_layer_norm: residual and x must have one shape (..., C) with C >= 1, "
            f"not {residual.shape} and {x.shape}"
        )
    for name, tensor in given.items():
        if tensor.shape != x.shape[-1:]:
            raise ShapeError(
                f"residual_layer_norm: {name} must have shape {x.shape[-1:]} to fit x of shape {x.shape}, "
                f"not {tensor.shape}"
            )
    eps = number("residual_layer_norm", "eps", eps, at_least=0)
    p = require_probability("residual_layer_norm", "dropout_p", dropout_p) if training else 0.0
    rows = x.size // x.shape[-1]
    key = (p, *mask_key("residual_layer_norm", generator, rows, x.shape)) if p > 0.0 else (0.0, 0, 0, 0)
    biases = [tensor for tensor in (x_bias, bias) if tensor is not None]
    has_biases = (x_bias is not None, bias is not None)
    return ResidualLayerNorm.apply(residual, x, weight, *biases, eps=eps, has_biases=has_biases, key=key)
