"""Dropout.

In training every element is set to zero with probability p, and the others are scaled up so that the expected value
stays what it was:

    keep_ij = 1 where words(seed, stream)_ij >= p * 2**32, else 0
    y       = x * keep / (1 - p)

Derivation of the gradient. For a given mask the operation is linear, and its matrix is diagonal, so it is its own
transpose:

    dx = dy * keep / (1 - p)

Saved: nothing but the pair (seed, stream). The mask is a pure function of that pair and of an element's place (see
`tinygpt.random`), so the backward pass draws it again: no array as large as x is kept, and neither threads nor
backends change it. The backward pass is the forward kernel.

Shapes: x (..., C) is taken as N rows of C; element (row, column) takes word (row, column).
Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: A Simple Way to Prevent Neural Networks from
Overfitting", JMLR 2014, section 4; scaled in training ("inverted"), as in its section 10.
"""

from __future__ import annotations

from ..backends import array_module
from ..function import Function
from ..kernel import kernel
from ..random import Generator, words
from ..tensor import Tensor
from ..typing import Array
from ._arguments import next_key, require_probability
from ._shapes import require_floating


def threshold(p: float) -> int:
    """A word below this number drops its element: p as a fraction of 2**32."""
    return min(round(p * 2**32), 2**32 - 1)


def dropout_mask(p: float, seed: int, stream: int, rows: int, columns: int, like: Array) -> Array:
    """(rows, columns) of 0 and 1 / (1 - p), in `like`'s library and dtype: what dropout multiplies by."""
    xp = array_module(like)
    keep = words(seed, stream, rows, columns, xp) >= xp.uint32(threshold(p))  # (rows, columns)
    return keep.astype(like.dtype) * (1.0 / (1.0 - p))


def dropout_composed(x: Tensor, p: float, seed: int, stream: int) -> Tensor:
    """The oracle: a product with the mask."""
    C = x.shape[-1]
    mask = dropout_mask(p, seed, stream, x.size // C, C, x.data)
    return x * Tensor(mask.reshape(x.shape))


@kernel
def dropout_apply(x: Array, p: float, seed: int, stream: int) -> Array:
    """x (N, C) -> y (N, C). Forward and backward are this same linear map."""
    N, C = x.shape
    return x * dropout_mask(p, seed, stream, N, C, x)


class Dropout(Function):
    def forward(self, x: Array, p: float, seed: int, stream: int) -> Array:
        self.key = (p, seed, stream)
        return self.mask(x)

    def backward(self, dy: Array) -> Array:
        return self.mask(dy)

    def mask(self, x: Array) -> Array:
        C = x.shape[-1] if x.ndim else 1
        rows = x.reshape(x.size // C if C else 0, C)  # (N, C)
        return dropout_apply(rows, *self.key).reshape(x.shape)


def dropout(x: Tensor, p: float, training: bool = True, generator: Generator | None = None) -> Tensor:
    """Set elements of x to zero with probability p and scale the others by 1 / (1 - p).

    x: any shape. p: in [0, 1); 1 is refused, because nothing would be left to scale up.
    training: False, or p of 0, returns x itself and uses no random numbers.
    generator: where the mask comes from; it gives one stream. None means `tinygpt.random.default_generator`.
    Returns a tensor of x's shape. Raises DtypeError, RangeError.
    """
    require_floating("dropout", x=x)
    p = require_probability("dropout", "p", p)
    if p == 0.0 or not training:
        return x
    seed, stream = next_key("dropout", generator)
    return Dropout.apply(x, p=p, seed=seed, stream=stream)
