"""Layers: an operation of `tinygpt.ops` together with its parameters.

Initial weights are drawn from a `Generator`, one RNG stream per parameter, so they depend only on the seed and on the
order in which the layers are created. The default generator (`tinygpt.manual_seed`) is used if none is given. Weights
are drawn in double precision and rounded to `dtype`.

    with uninitialized():
        model = GPT(config)         # a loader will fill every parameter next

draws nothing, which saves seconds for GPT-2: the weights are whatever the memory happens to hold. The generator ends in
the same state as if they had been drawn. With `without_matrices=True` the matrices are not even allocated, so a loader
that packs each matrix as soon as it is read never holds the whole model in float32.

Parameters are float32 (or float64). If the activations are 16-bit, a layer computes with 16-bit copies of its
parameters, and the gradients come back in float32 (`tinygpt/ops/cast.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np

from .. import ops
from ..checks import number, whole_number
from ..ops.packed import Matrix
from ..random import Generator, default_generator
from ..tensor import Tensor
from ..typing import DTypeLike, Ids
from .known import known
from .module import Module, Parameter

_weights = ContextVar("_weights", default="drawn")  # or "empty", or "absent"


@contextlib.contextmanager
def uninitialized(without_matrices: bool = False) -> Iterator[None]:
    """Layers created inside the block draw no initial weights: fill every weight before using it.

    without_matrices: the data of a matrix is a single number, broadcast to its shape and read-only, so it can't be
    filled in place: set `weight.data` to a new array.
    """
    token = _weights.set("absent" if without_matrices else "empty")
    try:
        yield
    finally:
        _weights.reset(token)


def _normal(generator: Generator | None, shape: tuple[int, ...], std: float, dtype: DTypeLike) -> Parameter:
    generator, weights = generator or default_generator, _weights.get()
    if weights == "drawn":
        return Parameter(generator.normal(shape, std, dtype))
    generator.next_key()
    if weights == "empty":
        return Parameter(np.empty(shape, dtype))
    parameter = Parameter(np.full((), np.nan, dtype))
    parameter.data = np.broadcast_to(parameter.data, shape)
    return parameter


@known("forward", "product", "matrix")
class Linear(Module):
    """y = x @ weight + bias, with `weight` (in_features, out_features), as GPT-2 checkpoints store it.

    std: of the initial weights. The default, 1/sqrt(in_features), gives y the variance of x.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        std: float | None = None,
        generator: Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        in_features = whole_number("Linear", "in_features", in_features)
        out_features = whole_number("Linear", "out_features", out_features)
        std = 1 / math.sqrt(in_features) if std is None else number("Linear", "std", std, at_least=0)
        self.weight = _normal(generator, (in_features, out_features), std, dtype)
        self.bias = Parameter(np.zeros(out_features, dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        weight, bias = ops.in_dtype_of(x, self.weight, self.bias)
        return ops.linear(x, weight, bias)

    if TYPE_CHECKING:
        __call__ = forward

    def product(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> x @ weight (..., out_features): the caller adds the bias later."""
        return ops.linear(x, ops.in_dtype_of(x, self.weight))

    @property
    def matrix(self) -> Matrix:
        """The weight as inference reads it."""
        return Matrix(self.weight.data)


@known("forward", "project", "matrix")
class Embedding(Module):
    """A table `weight` (count, features); each id picks a row."""

    def __init__(
        self,
        count: int,
        features: int,
        *,
        std: float = 0.02,
        generator: Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        shape = (whole_number("Embedding", "count", count), whole_number("Embedding", "features", features))
        self.weight = _normal(generator, shape, number("Embedding", "std", std, at_least=0), dtype)

    def forward(self, ids: Ids) -> Tensor:
        """ids (...) of integers below `count` -> (..., features)."""
        return ops.embedding(self.weight, ids)

    if TYPE_CHECKING:
        __call__ = forward

    def project(self, h: Tensor) -> Tensor:
        """h (..., features) -> h @ weight.T (..., count): the embedding used as the model's output head."""
        return h @ ops.in_dtype_of(h, self.weight).transpose()

    @property
    def matrix(self) -> Matrix:
        """The weight as inference reads it."""
        return Matrix(self.weight.data)


@known("forward")
class LayerNorm(Module):
    """Normalise the last axis (`features` numbers), then apply a learned scale and, unless bias=False, a shift."""

    def __init__(self, features: int, bias: bool = True, eps: float = 1e-5, *, dtype: DTypeLike = np.float32) -> None:
        features = whole_number("LayerNorm", "features", features)
        self.eps = number("LayerNorm", "eps", eps, above=0)
        self.weight = Parameter(np.ones(features, dtype))
        self.bias = Parameter(np.zeros(features, dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., features) -> the same shape."""
        weight, bias = ops.in_dtype_of(x, self.weight, self.bias)
        return ops.layer_norm(x, weight, bias, self.eps)

    if TYPE_CHECKING:
        __call__ = forward


@known("forward")
class RMSNorm(Module):
    """Divide the last axis (`features` numbers) by its root mean square, then apply a learned scale."""

    def __init__(self, features: int, eps: float = 1e-5, *, dtype: DTypeLike = np.float32) -> None:
        features = whole_number("RMSNorm", "features", features)
        self.eps = number("RMSNorm", "eps", eps, above=0)
        self.weight = Parameter(np.ones(features, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., features) -> the same shape."""
        return ops.rms_norm(x, ops.in_dtype_of(x, self.weight), self.eps)

    if TYPE_CHECKING:
        __call__ = forward


@known("forward")
class Dropout(Module):
    """In training mode each element is zeroed with probability p and the others are scaled by 1/(1 - p)."""

    def __init__(self, p: float, generator: Generator | None = None) -> None:
        self.p = number("Dropout", "p", p, at_least=0, below=1)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape. Uses one RNG stream of the generator whenever it drops anything."""
        return ops.dropout(x, self.p, training=self.training, generator=self.generator)

    if TYPE_CHECKING:
        __call__ = forward
