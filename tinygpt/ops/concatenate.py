"""concatenate, stack and split: pieces along an axis put together, and taken apart.

They are each other's inverse, and since no number is changed, each other's gradient:

    y = concatenate(x_1, ..., x_n)       dx_i = the piece of dy where x_i went       (views of dy)
    y_1, ..., y_n = split(x)             dx = concatenate(dy_1, ..., dy_n)           (one copy)

`split` is a single node with several outputs, so that its backward pass writes dx once, where slicing n times would
make n arrays of zeros as large as x and add them up. Its outputs are views of x.

Saved: the sizes of the pieces.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

from ..backends import array_module
from ..errors import DtypeError, ShapeError
from ..function import Function
from ..tensor import Tensor, as_tensor
from ._shapes import normalize_axis
from .shape import reshape


class Concatenate(Function):
    def forward(self, *arrays: Any, axis: int) -> Any:
        self.axis, self.sizes = axis, [x.shape[axis] for x in arrays]
        return array_module(arrays[0]).concatenate(arrays, axis=axis)

    def backward(self, dy: Any) -> Any:
        return _pieces(dy, self.sizes, self.axis)


class Split(Function):
    def forward(self, x: Any, sizes: Sequence[int], axis: int) -> Any:
        self.axis = axis
        return _pieces(x, sizes, axis)

    zeros_for_unused = True  # a piece that nobody used gets zeros: x is a single input, and another piece was used

    def backward(self, *dys: Any) -> Any:
        return array_module(dys[0]).concatenate(dys, axis=self.axis)


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors one after another along an axis that they have; their other sizes must agree.

    Raises ShapeError when they don't or when there are no tensors, RangeError for an axis that does not exist.
    """
    parts = _tensors("concatenate", tensors)
    first = parts[0]
    if first.ndim == 0:
        raise ShapeError("concatenate: tensors of shape () have no axis to be put together along: use stack")
    axis = normalize_axis("concatenate", axis, first.ndim)
    for i, part in enumerate(parts):
        if part.ndim != first.ndim or _without(part.shape, axis) != _without(first.shape, axis):
            raise ShapeError(
                f"concatenate: shapes must be equal except along axis {axis}, "
                f"but tensor 0 has {first.shape} and tensor {i} has {part.shape}"
            )
    return Concatenate.apply(*parts, axis=axis)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis: concatenate after a reshape that adds the axis.

    Raises ShapeError for unequal shapes or no tensors, RangeError for an axis beyond the new one's places.
    """
    parts = _tensors("stack", tensors)
    shape = parts[0].shape
    axis = normalize_axis("stack", axis, len(shape) + 1)
    for i, part in enumerate(parts):
        if part.shape != shape:
            raise ShapeError(f"stack: shapes must be equal, but tensor 0 has {shape} and tensor {i} has {part.shape}")
    return concatenate([reshape(part, (*shape[:axis], 1, *shape[axis:])) for part in parts], axis)


def split(x: Any, sizes: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """Pieces of x along an axis, as views.

    sizes: the size of every piece but the last, which is smaller if x's axis is no multiple of it; or a list with the
    size of each piece, as in PyTorch.

    Raises ShapeError when the sizes do not add up, RangeError for an axis that does not exist.
    """
    x = as_tensor(x)
    axis = normalize_axis("split", axis, x.ndim)
    total = x.shape[axis]
    try:
        if isinstance(sizes, (list, tuple)):
            wanted = [operator.index(size) for size in sizes]
        else:
            each = operator.index(sizes)  # type: ignore[arg-type]
            wanted = [min(each, total - start) for start in range(0, total, each)] if each > 0 else [each]
    except TypeError:
        raise DtypeError(f"split: takes an integer or a list of integers, not {sizes!r}") from None
    if not wanted or min(wanted) < 0 or sum(wanted) != total:
        raise ShapeError(f"split: pieces of sizes {sizes} do not make up axis {axis} of shape {x.shape}")
    return Split.apply(x, sizes=wanted, axis=axis)


def _tensors(operation: str, tensors: Any) -> list[Tensor]:
    if not isinstance(tensors, (list, tuple)):
        raise DtypeError(f"{operation}: takes a list or tuple of tensors, not {type(tensors).__name__}")
    if not tensors:
        raise ShapeError(f"{operation}: needs at least one tensor, the list is empty")
    like = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
    return [as_tensor(tensor, like) for tensor in tensors]


def _pieces(x: Any, sizes: Sequence[int], axis: int) -> tuple[Any, ...]:
    """Views of x, side by side along `axis`."""
    before = (slice(None),) * axis
    ends = itertools.accumulate(sizes)
    return tuple([x[(*before, slice(end - size, end))] for size, end in zip(sizes, ends, strict=True)])


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
