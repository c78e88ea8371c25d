"""reshape and transpose: the same numbers with different indices.

    y = reshape(x, shape)         dx = reshape(dy, x.shape)
    y = transpose(x, axes)        dx = transpose(dy, argsort(axes))

argsort(axes) is the inverse permutation of axes. Neither computes anything, so the gradient is just rearranged back.
Both return views if the memory layout allows it (transpose always does).

Saved: the old shape; the permutation.

No oracle: no number changes. The tests compare them with NumPy's, and check differences.

Shapes: any; y has as many elements as x.
Source: the adjoint of a permutation is its inverse: Griewank, Walther, "Evaluating Derivatives", 2nd edition, 2008,
section 3.2.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from ..errors import DtypeError, ShapeError
from ..function import Function
from ..tensor import Tensor, as_tensor
from ..typing import Array, TensorLike
from ._shapes import normalize_axis


class Reshape(Function):
    def forward(self, x: Array, shape: tuple[int, ...]) -> Array:
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.shape)


class Transpose(Function):
    def forward(self, x: Array, axes: tuple[int, ...]) -> Array:
        self.axes = axes
        return x.transpose(axes)

    def backward(self, dy: Array) -> Array:
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return dy.transpose(inverse)


def reshape(x: TensorLike, *shape: int | Sequence[int]) -> Tensor:
    """The same elements in row-major order, with another shape; one size may be -1 and is then computed.

    shape: integers, or one tuple of them. Raises ShapeError when the number of elements differs.
    """
    return _reshaped("reshape", as_tensor(x), shape)


def _reshaped(operation: str, x: Tensor, shape: tuple[int | Sequence[int], ...]) -> Tensor:
    """`reshape`, under the name that error messages should have."""
    return Reshape.apply(x, shape=_target(operation, x.shape, _sizes(operation, shape)))


def transpose(x: TensorLike, *axes: int | Sequence[int]) -> Tensor:
    """The axes in another order.

    transpose(x) reverses them all; transpose(x, i, j) swaps two of them, as in PyTorch; transpose(x, (i, j, k))
    with a tuple, or more than two integers, puts axis i first, j second, k third, as in NumPy.

    Raises RangeError for an axis that does not exist, ShapeError unless the order names every axis once.
    """
    x = as_tensor(x)
    order = list(range(x.ndim))
    if not axes:
        order.reverse()
    elif len(axes) == 2:
        i, j = (normalize_axis("transpose", a, x.ndim) for a in _sizes("transpose", axes))
        order[i], order[j] = order[j], order[i]
    else:
        return _permuted("transpose", x, axes)
    return Transpose.apply(x, axes=tuple(order))


def _permuted(operation: str, x: Tensor, axes: tuple[int | Sequence[int], ...]) -> Tensor:
    """The axes in the order `axes`, for a caller whose name error messages should have."""
    order = tuple(normalize_axis(operation, a, x.ndim) for a in _sizes(operation, axes))
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"{operation}: {order} is not an order of the {x.ndim} axes of a tensor of shape {x.shape}")
    return Transpose.apply(x, axes=order)


def _sizes(operation: str, given: tuple[int | Sequence[int], ...]) -> tuple[int, ...]:
    """The integers as a tuple, whether given separately or as one tuple. Raises DtypeError."""
    sizes: Sequence[Any] = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    try:
        return tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise DtypeError(f"{operation}: takes integers or one tuple of integers, not {tuple(sizes)}") from None


def _target(operation: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """`wanted` with the size in place of -1 computed. Raises ShapeError."""
    known = math.prod(size for size in wanted if size != -1)
    total = math.prod(shape)
    fits = min(wanted, default=0) >= -1 and (
        known == total if -1 not in wanted else wanted.count(-1) == 1 and known > 0 and total % known == 0
    )
    if not fits:
        raise ShapeError(f"{operation}: {total} elements of shape {shape} do not fit into shape {wanted}")
    return tuple(total // known if size == -1 else size for size in wanted)
