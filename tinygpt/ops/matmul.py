"""The matrix product, also of batches of matrices, with broadcasting.

    y_ij = sum over k of a_ik b_kj

A change of a_ik changes y_ij by b_kj times as much, for every j; a change of b_kj changes it by a_ik times as much, for
every i. Multiply by dy_ij and sum:

    da_ik = sum over j of dy_ij b_kj        da = dy b.T
    db_kj = sum over i of a_ik dy_ij        db = a.T dy

b.T and a.T are views: the matrix product reads them without copying. If a matrix was repeated over a batch, its
gradient is the sum over the batch (`unbroadcast`). If b is a single matrix for the whole batch, like the weights of a
layer, the leading axes of a are flattened to one long axis of rows. Then each of the three products is one large
product, which is much faster than many small ones, and db is summed over the batch inside it.

Operands with one axis work as in NumPy: a (K,) on the left is a row, b (K,) on the right is a column, and the axis that
this adds is removed from the result.

Saved: a and b, each only if the other one needs a gradient.

No oracle: this is a primitive operation. The tests compare it with a sum of products, and check differences.

Shapes: a (..., M, K), b (..., K, N) -> (..., M, N).
Source: Giles, "An extended collection of matrix derivative results for forward and reverse mode algorithmic
differentiation", 2008, under "Multiplication".
"""

from __future__ import annotations

import numpy as np

from ..errors import DtypeError, ShapeError
from ..function import Function
from ..tensor import Tensor, as_tensor
from ..typing import Array, TensorLike
from ._matmul import matmul_arrays
from ._shapes import unbroadcast


def _matmul(a: Array, b: Array) -> Array:
    """a (..., M, K) @ b (..., K, N); if b is a single matrix, as one product with all of a's rows."""
    if b.ndim == 2 and a.ndim > 2 and a.size:
        return matmul_arrays(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[-1])
    return matmul_arrays(a, b)


class MatMul(Function):
    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        self.save(a if self.needs[1] else None, b if self.needs[0] else None)
        return _matmul(a, b)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        (a, b), (a_shape, b_shape) = self.saved, self.shapes
        if len(b_shape) == 1:
            dy = dy[..., None]  # (..., M, 1)
        if len(a_shape) == 1:
            dy = dy[..., None, :]  # (..., 1, N)
        da = db = None
        if self.needs[0]:
            columns = b if b.ndim > 1 else b[:, None]  # (..., K, N)
            da = _matmul(dy, columns.swapaxes(-1, -2))  # (..., M, K)
            da = unbroadcast(da, a_shape if len(a_shape) > 1 else (1, *a_shape)).reshape(a_shape)
        if self.needs[1]:
            rows = a if a.ndim > 1 else a[None, :]  # (..., M, K)
            if len(b_shape) <= 2 and rows.ndim > 2 and rows.size:
                rows = rows.reshape(-1, rows.shape[-1])  # the batch as more rows
                dy = dy.reshape(len(rows), dy.shape[-1])
            db = matmul_arrays(rows.swapaxes(-1, -2), dy)  # (..., K, N)
            db = unbroadcast(db, b_shape if len(b_shape) > 1 else (*b_shape, 1)).reshape(b_shape)
        return da, db


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """The matrix product a @ b.

    a: (..., M, K) or (K,). b: (..., K, N) or (K,). Leading axes broadcast. Returns (..., M, N), without M or N if that
    operand has only one axis. Raises ShapeError for shapes that do not fit, DtypeError for booleans.
    """
    like = a if isinstance(a, Tensor) else b if isinstance(b, Tensor) else None
    a, b = as_tensor(a, like), as_tensor(b, like)
    _check(a, b)
    return MatMul.apply(a, b)


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(
            f"matmul: both operands need an axis, they have shapes {a.shape} and {b.shape}: for numbers use *"
        )
    if "b" in (a.dtype.kind, b.dtype.kind):
        raise DtypeError("matmul: booleans have no matrix product: cast to a number")
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise ShapeError(
            f"matmul: the last axis of the left operand must be as long as the rows of the right one: "
            f"{a.shape[-1]} and {inner}, from shapes {a.shape} and {b.shape}"
        )
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ShapeError(f"matmul: the leading axes of shapes {a.shape} and {b.shape} do not broadcast") from None
