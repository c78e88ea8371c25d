"""The linear layer: y = x W + b.

For rows x_n, y_nj = sum over i of x_ni W_ij, plus b_j, hence

    dx_ni = sum over j of dy_nj W_ij        dx = dy W.T
    dW_ij = sum over n of x_ni dy_nj        dW = x.T dy
    db_j  = sum over n of dy_nj             db = unbroadcast(dy, (out,))

All leading axes of x are flattened to one axis of N rows, so each of the three products is a single call of the matrix
library, which reads W.T and x.T as views. The bias is added to the product in place.

With 16-bit arrays dW and db stay in float32: their sums are computed in float32, and that is what the master weights
need (cast.py).

Saved: x and W, which the products of the backward pass need, but not y.

Shapes: x (..., in), weight (in, out), as GPT-2 checkpoints store it, bias (out,) -> (..., out).
Source: Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", 1986, equations 6 and 7; as
products of matrices: Giles, "An extended collection of matrix derivative results for forward and reverse mode
algorithmic differentiation", 2008, under "Multiplication".
"""

from __future__ import annotations

from ..errors import ShapeError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array
from ._arguments import require_same_dtype
from ._matmul import matmul_arrays
from ._shapes import long_sum


def linear_composed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The oracle: a product and a sum."""
    y = x @ weight
    return y if bias is None else y + bias


@kernel(in_place=True)
def add_bias(y: Array, bias: Array) -> Array:
    """y (N, C), bias (C,) -> y + bias (N, C), written into y where y's memory allows."""
    y += bias
    return y


@kernel(statistics={"column_sums": 0})
def column_sum(x: Array) -> Array:
    """x (N, C) -> (C,): the sum of each column, accumulated in float64."""
    return long_sum(x, (0,))


class Linear(Function):
    def forward(self, x: Array, weight: Array, *bias: Array) -> Array:
        self.shape = x.shape
        self.save(x if self.needs[1] else None, weight if self.needs[0] else None)
        y = matmul_arrays(x.reshape(-1, x.shape[-1]), weight)  # (N, out)
        if bias:
            y = add_bias(y, bias[0])
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, weight = self.saved
        rows = dy.reshape(-1, dy.shape[-1])  # (N, out)
        # (in, out)
        dweight = matmul_arrays(x.reshape(-1, x.shape[-1]).T, rows, float32_result=True) if self.needs[1] else None
        del x  # it may have been recomputed only for this product: free its memory for dx
        dx = matmul_arrays(rows, weight.T).reshape(self.shape) if self.needs[0] else None
        if len(self.needs) == 2:
            return dx, dweight
        return dx, dweight, column_sum(rows) if self.needs[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias over the last axis of x.

    x: (..., in). weight: (in, out). bias: (out,), or None. All of one dtype. Returns (..., out).
    Raises ShapeError, DtypeError.
    """
    given = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    require_same_dtype("linear", **given)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ShapeError(f"linear: weight must have shape (in, out), none of them 0, not {weight.shape}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(
            f"linear: the last axis of x must have {weight.shape[0]} elements to fit weight of shape {weight.shape}, "
            f"x has shape {x.shape}"
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ShapeError(f"linear: bias must have shape {weight.shape[1:]}, not {bias.shape}")
    return Linear.apply(*given.values())
