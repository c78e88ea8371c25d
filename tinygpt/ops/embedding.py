"""Embedding: rows of a table, picked by integer ids.

    y_i = weight[ids_i]

Derivation of the gradient. Let onehot_ij = [j = ids_i], of shape (N, V). Then the embedding is the linear map
y = onehot @ weight, so

    dweight = onehot.T @ dy          dweight_j = sum over i of [j = ids_i] dy_i

The same id may occur many times, so the rows of dy are *added* (scatter-add), not assigned. Ids are integers, so they
have no gradient.

Only a few rows of dweight change, so the kernel adds to an existing array. If the model's output head shares the table
and has already computed a gradient of it (154 MB for GPT-2), the kernel adds to that; otherwise it starts from zeros.

Saved: only a copy of the ids, since the caller may refill their buffer before the backward pass. The map is linear, so
its gradient does not depend on the table's values.

Shapes: weight (V, C), ids of any shape (...), y (..., C); inside, N ids.
Source: Bengio, Ducharme, Vincent, Jauvin, "A Neural Probabilistic Language Model", JMLR 2003, section 2 (the matrix C).
"""

from __future__ import annotations

from ..backends import array_module, from_host
from ..errors import ShapeError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array, Ids
from ._arguments import integer_array, require_ids
from ._shapes import require_floating, zeros


def embedding_composed(weight: Tensor, ids: Array) -> Tensor:
    """The oracle: a matrix product with the one-hot matrix."""
    xp = array_module(weight.data)
    V, C = weight.shape
    onehot = (ids.reshape(-1, 1) == xp.arange(V)).astype(weight.dtype)  # (N, V)
    return (Tensor(onehot) @ weight).reshape(*ids.shape, C)


@kernel
def embedding_forward(weight: Array, ids: Array) -> Array:
    """weight (V, C), ids (N,) -> y (N, C)."""
    return weight[ids]


@kernel(in_place=True)
def embedding_backward(dy: Array, ids: Array, dweight: Array) -> None:
    """dy (N, C), ids (N,): add row i of dy to row ids_i of dweight (V, C)."""
    if ids.size == 0:
        return
    xp = array_module(dy)
    order = xp.argsort(ids, kind="stable")  # (N,) brings equal ids together
    sorted_ids = ids[order]  # (N,)
    is_first = xp.ones(ids.shape, dtype=bool)  # (N,)
    is_first[1:] = sorted_ids[1:] != sorted_ids[:-1]
    starts = xp.flatnonzero(is_first)  # (distinct ids,) where each run of one id begins
    dweight[sorted_ids[starts]] += xp.add.reduceat(dy[order], starts, axis=0, dtype=xp.float64)


class Embedding(Function):
    def forward(self, weight: Array, ids: Array) -> Array:
        self.save(ids)
        self.V = len(weight)
        return embedding_forward(weight, ids.reshape(-1)).reshape(*ids.shape, weight.shape[1])

    def backward(self, dy: Array) -> Array:
        (ids,) = self.saved
        C = dy.shape[-1]
        with self.present_gradient(0) as dweight:
            if dweight is None:
                dweight = zeros((self.V, C), dy)  # (V, C)
            embedding_backward(dy.reshape(ids.size, C), ids.reshape(-1), dweight)
        return dweight


def embedding(weight: Tensor, ids: Ids) -> Tensor:
    """The rows of `weight` at the indices `ids`.

    weight: (V, C). ids: integers in 0 .. V - 1 of any shape (...); a tensor, an array or nested lists. Negative ids
    are refused; they do not count from the end. Returns (..., C). Raises ShapeError, DtypeError, RangeError.
    """
    require_floating("embedding", weight=weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ShapeError(f"embedding: weight must be (V, C) with V and C >= 1, not {weight.shape}")
    ids = integer_array("embedding", "ids", ids)
    V = weight.shape[0]
    require_ids("embedding", "ids", ids, V, f"the table has {V} rows")
    return Embedding.apply(weight, ids=from_host("embedding", "ids", ids, weight.data))
