"""Layers whose weights are packed into 16 or 8 bits: for inference only (`tinygpt.ops.packed` has the formats).

They take the places of Linear and Embedding in a model that only runs: `GPT.pack`. Their matrices are no parameters.
"""

from __future__ import annotations

from typing import Any

from .. import backends
from ..errors import ShapeError
from ..ops.packed import Matrix, pack, packed_product, packed_product_transposed, rows_of
from ..tensor import Tensor
from .layers import Embedding, Linear
from .module import Module


class PackedLinear(Module):
    """y = x W + bias, W (in, out) packed."""

    def __init__(self, linear: Linear, format: str, group: int | None = None) -> None:
        self.matrix = pack(linear.weight.data, format, 0, group)
        self.bias = linear.bias

    def packed_size(self) -> int:
        return self.matrix.data.size

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """x (..., in) -> x W (..., out). Raises ShapeError."""
        features = len(self.matrix.data)
        if x.ndim == 0 or x.shape[-1] != features:
            raise ShapeError(f"PackedLinear: the last axis of x must have {features} elements, x has shape {x.shape}")
        if x.backend != backends.name_of(self.matrix.data):
            raise backends.different_backends("PackedLinear", x.data, self.matrix.data)
        y = packed_product(x.data.reshape(-1, x.shape[-1]), self.matrix)
        return Tensor(y.reshape(*x.shape[:-1], y.shape[1]))

    def move_packed(self, backend: str) -> None:
        self.matrix = _moved(self.matrix, backend)


class PackedEmbedding(Module):
    """Row `ids[...]` of a packed (count, features) matrix for each id; and its transpose as the head."""

    def __init__(self, embedding: Embedding, format: str, group: int | None = None) -> None:
        self.matrix = pack(embedding.weight.data, format, 1, group)

    def packed_size(self) -> int:
        return self.matrix.data.size

    def forward(self, ids: Any) -> Tensor:
        """ids (...) of integers below `count` -> (..., features)."""
        ids = backends.from_host("PackedEmbedding", "ids", ids, self.matrix.data)
        rows = rows_of(self.matrix, ids.reshape(-1))
        return Tensor(rows.reshape(*ids.shape, rows.shape[1]))

    def project(self, h: Tensor) -> Tensor:
        """h (..., features) -> (..., count)."""
        y = packed_product_transposed(h.data.reshape(-1, h.shape[-1]), self.matrix)
        return Tensor(y.reshape(*h.shape[:-1], y.shape[1]))

    def move_packed(self, backend: str) -> None:
        self.matrix = _moved(self.matrix, backend)


def pack_linear_layers(module: Module, format: str, group: int | None = None) -> None:
    """Replace every Linear inside `module` by a packed one, one after the other, so that memory is freed on the way."""
    for owner in module.modules():
        for name, value in vars(owner).items():
            if isinstance(value, Linear):
                setattr(owner, name, PackedLinear(value, format, group))


def _moved(matrix: Matrix, backend: str) -> Matrix:
    scale = None if matrix.scale is None else backends.move(matrix.scale, backend)
    return Matrix(backends.move(matrix.data, backend), scale, matrix.group)
