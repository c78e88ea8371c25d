"""Products with packed weights, as nodes of the graph.

    y = x W          y = x W.T

The first is a linear layer, W (K, N); the second is the output head, W (N, K).

Packed weights are constants: they are not trained, but a gradient passes through them to x. With the float32 weights W
that the packed ones stand for,

    dx = dy W.T      dx = dy W

That is the exact derivative of the forward pass, which also computes with these weights: unpacking is not rounded
again. So an adapter beside a packed layer trains as it would beside a layer with the unpacked weights. Where x is
rounded first (`_integer_product.py`), dx takes that for the identity, as in cast.py.

Saved: the packed matrix. The backward pass unpacks it again, because the float32 weights would take two to seven times
its memory for the whole step.

No oracle: the tests compare it with the linear layer of the unpacked weights.

Shapes: x (..., K) -> y (..., N).
Source: packed.py; training through packed weights: Dettmers et al., "QLoRA", 2023,
section 3.
"""

from __future__ import annotations

from ..function import Function
from ..typing import Array
from ._matmul import matmul_arrays
from .packed import Matrix, packed_product, packed_product_transposed, unpack


class PackedProduct(Function):
    def forward(self, x: Array, matrix: Matrix) -> Array:
        self.matrix, self.shape = matrix, x.shape
        y = packed_product(x.reshape(-1, x.shape[-1]), matrix)  # (M, N)
        return y.reshape(*x.shape[:-1], y.shape[1])

    def backward(self, dy: Array) -> Array:
        rows = dy.reshape(-1, dy.shape[-1])  # (M, N)
        return matmul_arrays(rows, unpack(self.matrix).T).reshape(self.shape)


class PackedProductTransposed(Function):
    def forward(self, x: Array, matrix: Matrix) -> Array:
        self.matrix, self.shape = matrix, x.shape
        y = packed_product_transposed(x.reshape(-1, x.shape[-1]), matrix)  # (M, N)
        return y.reshape(*x.shape[:-1], y.shape[1])

    def backward(self, dy: Array) -> Array:
        rows = dy.reshape(-1, dy.shape[-1])  # (M, N)
        return matmul_arrays(rows, unpack(self.matrix, axis=1)).reshape(self.shape)
