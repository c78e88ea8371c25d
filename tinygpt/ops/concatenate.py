"""concatenate, stack and split: join tensors along an axis, or cut one into pieces.

Joining and cutting are inverses. Since neither changes any number, each is also the other's gradient:

    y = concatenate(x_1, ..., x_n)       dx_1, ..., dx_n = split(dy)
    y_1, ..., y_n = split(x)             dx = concatenate(dy_1, ..., dy_n)

The first gradients are views of dy, the second is one copy.

`split` is a single node with several outputs, so its backward pass writes dx only once. Slicing n times would make n
arrays of zeros as large as x and add them up. The outputs of `split` are views of x.

Saved: the sizes of the pieces.

No oracle: no number changes. The tests compare split with slices, and stack with concatenate, and check differences.

Shapes: x_i equal but along the axis, where their sizes add up to y's.
Source: the adjoint of a selection matrix is its transpose: Griewank, Walther, "Evaluating Derivatives", 2nd edition,
2008, section 3.2.
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
from ..typing import Array, TensorLike
from ._shapes import axis_or_dim, normalize_axis
from .shape import reshape


class Concatenate(Function):
    def forward(self, *arrays: Array, axis: int) -> Array:
        self.axis, self.sizes = axis, [x.shape[axis] for x in arrays]
        return array_module(arrays[0]).concatenate(arrays, axis=axis)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        return _pieces(dy, self.sizes, self.axis)


class Split(Function):
    def forward(self, x: Array, sizes: Sequence[int], axis: int) -> tuple[Array, ...]:
        self.axis = axis
        return _pieces(x, sizes, axis)

    zeros_for_unused = True  # an unused piece gets zeros: x has a gradient anyway, since another piece was used

    def backward(self, *dys: Array) -> Array:
        return array_module(dys[0]).concatenate(dys, axis=self.axis)


def concatenate(tensors: Sequence[TensorLike], axis: int = 0, *, dim: int | None = None) -> Tensor:
    """Join tensors along an existing axis; the sizes of all other axes must agree.

    dim: PyTorch's name for axis.
    Raises ShapeError if they do not or if there are no tensors, RangeError for an axis that does not exist.
    """
    parts = _tensors("concatenate", tensors)
    first = parts[0]
    if first.ndim == 0:
        raise ShapeError("concatenate: tensors of shape () have no axis to join along: use stack")
    axis = normalize_axis("concatenate", axis_or_dim("concatenate", axis, dim, 0), first.ndim)
    for i, part in enumerate(parts):
        if part.ndim != first.ndim or _without(part.shape, axis) != _without(first.shape, axis):
            raise ShapeError(
                f"concatenate: shapes must be equal except along axis {axis}, "
                f"but tensor 0 has {first.shape} and tensor {i} has {part.shape}"
            )
    return Concatenate.apply(*parts, axis=axis)


def stack(tensors: Sequence[TensorLike], axis: int = 0, *, dim: int | None = None) -> Tensor:
    """Join tensors of one shape along a new axis: a reshape that adds the axis, then concatenate.

    dim: PyTorch's name for axis.
    Raises ShapeError for unequal shapes or no tensors, RangeError for an axis that the result does not have.
    """
    parts = _tensors("stack", tensors)
    shape = parts[0].shape
    axis = normalize_axis("stack", axis_or_dim("stack", axis, dim, 0), len(shape) + 1)
    for i, part in enumerate(parts):
        if part.shape != shape:
            raise ShapeError(f"stack: shapes must be equal, but tensor 0 has {shape} and tensor {i} has {part.shape}")
    return concatenate([reshape(part, (*shape[:axis], 1, *shape[axis:])) for part in parts], axis)


def split(x: TensorLike, sizes: int | Sequence[int], axis: int = 0, *, dim: int | None = None) -> tuple[Tensor, ...]:
    """Split x along an axis into pieces, which are views.

    sizes: an integer, the size of every piece, except that the last may be smaller; or a list of all sizes, as in
    PyTorch. dim: PyTorch's name for axis.

    Raises ShapeError if the sizes do not add up, RangeError for an axis that does not exist.
    """
    x = as_tensor(x)
    axis = normalize_axis("split", axis_or_dim("split", axis, dim, 0), x.ndim)
    total = x.shape[axis]
    try:
        if isinstance(sizes, (list, tuple)):
            wanted = [operator.index(size) for size in sizes]
        else:
            size = operator.index(sizes)  # type: ignore[arg-type]
            wanted = [min(size, total - start) for start in range(0, total, size)] if size > 0 else [size]
    except TypeError:
        raise DtypeError(f"split: sizes must be an integer or a list of integers, not {sizes!r}") from None
    if not wanted or min(wanted) < 0 or sum(wanted) != total:
        raise ShapeError(f"split: sizes {sizes} do not add up to axis {axis} of shape {x.shape}")
    return Split.apply(x, sizes=wanted, axis=axis)


def _tensors(operation: str, tensors: Any) -> list[Tensor]:
    if not isinstance(tensors, (list, tuple)):
        raise DtypeError(f"{operation}: takes a list or tuple of tensors, not {type(tensors).__name__}")
    if not tensors:
        raise ShapeError(f"{operation}: needs at least one tensor, but the list is empty")
    like = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
    return [as_tensor(tensor, like) for tensor in tensors]


def _pieces(x: Array, sizes: Sequence[int], axis: int) -> tuple[Array, ...]:
    """Views of x, side by side along `axis`."""
    before = (slice(None),) * axis
    ends = itertools.accumulate(sizes)
    return tuple([x[(*before, slice(end - size, end))] for size, end in zip(sizes, ends, strict=True)])


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
