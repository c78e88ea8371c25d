"""Dropout.

In training, each element is set to zero with probability p, and the others are scaled up so that the expected value
does not change:

    keep_ij = [words(seed, stream)_ij >= p * 2**32]
    y       = x * keep / (1 - p)

Derivation of the gradient. For a given mask the operation is linear with a diagonal matrix, which is its own transpose:

    dx = dy * keep / (1 - p)

So the backward pass can call the forward kernel.

Saved: only the key (seed, stream, first row). The mask is a pure function of that key and an element's index (see
`tinygpt.random`), so the backward pass can recompute it instead of saving an array as large as x. The mask does not
depend on the number of threads or the backend.

Shapes: x (..., C) is treated as N rows of C; element (row, column) uses word (first row + row, column). The first row
is 0, unless x is a part of a larger batch (`Generator.rows_before`).
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
from ._arguments import mask_key, require_probability
from ._shapes import require_floating


def threshold(p: float) -> int:
    """p as a fraction of 2**32: an element is dropped if its word is below this number."""
    return min(round(p * 2**32), 2**32 - 1)


def dropout_mask(p: float, seed: int, stream: int, rows: int, columns: int, like: Array, first_row: int = 0) -> Array:
    """The factors of dropout: (rows, columns) of 0 or 1 / (1 - p), in `like`'s library and dtype."""
    xp = array_module(like)
    keep = words(seed, stream, rows, columns, xp, first_row) >= xp.uint32(threshold(p))  # (rows, columns)
    return keep.astype(like.dtype) * (1.0 / (1.0 - p))


def dropout_composed(x: Tensor, p: float, seed: int, stream: int) -> Tensor:
    """The oracle: a product with the mask."""
    C = x.shape[-1]
    mask = dropout_mask(p, seed, stream, x.size // C, C, x.data)
    return x * Tensor(mask.reshape(x.shape))


@kernel
def dropout_apply(x: Array, p: float, seed: int, stream: int, first_row: int = 0) -> Array:
    """x (N, C) -> y (N, C). The backward pass is the same linear map. Row 0 of x has the words of row `first_row`."""
    N, C = x.shape
    return x * dropout_mask(p, seed, stream, N, C, x, first_row)


class Dropout(Function):
    def forward(self, x: Array, p: float, key: tuple[int, int, int]) -> Array:
        self.key = (p, *key)
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
    training: if False, or if p is 0, returns x itself and uses no random numbers.
    generator: draws the mask, with one RNG stream. None means `tinygpt.random.default_generator`.
    Returns a tensor of x's shape. Raises DtypeError, RangeError.
    """
    require_floating("dropout", x=x)
    p = require_probability("dropout", "p", p)
    if p == 0.0 or not training:
        return x
    rows = x.size // x.shape[-1] if x.size and x.ndim else 0
    return Dropout.apply(x, p=p, key=mask_key("dropout", generator, rows, x.shape))
