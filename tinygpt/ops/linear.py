"""The linear layer: y = x W + b.

For rows x_n, y_nj = sum over i of x_ni W_ij, plus b_j, hence

    dx_ni = sum over j of dy_nj W_ij        dx = dy W.T
    dW_ij = sum over n of x_ni dy_nj        dW = x.T dy
    db_j  = sum over n of dy_nj             db = unbroadcast(dy, (out,))

All leading axes of x are flattened to one axis of N rows, so each of the three products is a single call of the matrix
library, which reads W.T and x.T as views. The bias is added to the product in place.

With 16-bit arrays dW and db stay in float32: their sums are computed in float32, and that is what the master weights
need (cast.py). On a GPU the product itself may then add the bias, and that for dW may add up db: cuBLASLt's epilogues
(backends/cupy_epilogues.py).

Saved: x and W, which the products of the backward pass need, but not y.

Shapes: x (..., in), weight (in, out), as GPT-2 checkpoints store it, bias (out,) -> (..., out).
Source: Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", 1986, equations 6 and 7; as
products of matrices: Giles, "An extended collection of matrix derivative results for forward and reverse mode
algorithmic differentiation", 2008, under "Multiplication".
"""

from __future__ import annotations

from ..backends import epilogues
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


def product_and_bias(x: Array, weight: Array, bias: Array) -> Array:
    """x (N, in), weight (in, out), bias (out,) -> x W + b (N, out)."""
    fused = epilogues(x)
    y = None if fused is None else fused.linear(x, weight, bias)
    return add_bias(matmul_arrays(x, weight), bias) if y is None else y


def gradients(
    x: Array | None, dy: Array, of_weight: bool, of_bias: bool, room: Array | None = None
) -> tuple[Array | None, Array | None]:
    """x (N, in), dy (N, out) -> dW (in, out), db (out,); None for one that is not wanted. x: for dW alone. room: where
    dW may be made (`Function.gradient_room`)."""
    fused = epilogues(dy) if of_weight and of_bias else None
    both = None if fused is None else fused.gradients(x, dy)
    if both is not None:
        return both[0], both[1]
    dweight = matmul_arrays(x.T, dy, out=room, float32_result=True) if of_weight and x is not None else None
    return dweight, column_sum(dy) if of_bias else None


class Linear(Function):
    def forward(self, x: Array, weight: Array, *bias: Array) -> Array:
        self.shape = x.shape
        self.save(x if self.needs[1] else None, weight if self.needs[0] else None)
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        y = product_and_bias(rows, weight, *bias) if bias else matmul_arrays(rows, weight)  # (N, out)
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, weight = self.saved
        rows = dy.reshape(-1, dy.shape[-1])  # (N, out)
        x_rows = None if x is None else x.reshape(-1, x.shape[-1])  # (N, in)
        wanted = self.needs[1], self.needs[2:] == (True,)
        dweight, dbias = gradients(x_rows, rows, *wanted, room=self.gradient_room(1))  # (in, out), (out,)
        del x, x_rows  # it may have been recomputed only for this product: free its memory for dx
        dx = matmul_arrays(rows, weight.T).reshape(self.shape) if self.needs[0] else None
        return (dx, dweight, dbias)[: len(self.needs)]


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
