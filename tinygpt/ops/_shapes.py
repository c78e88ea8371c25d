"""What many operations need to know about shapes: broadcasting undone, axes checked."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import DtypeError, RangeError, ShapeError


def unbroadcast(grad: Any, shape: tuple[int, ...]) -> Any:
    """Sum `grad` over the axes along which an input of `shape` was repeated.

    Broadcasting copies an element to many places; the gradient of a copy is the sum over the copies.
    """
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    axes = tuple(range(added)) + tuple(
        added + i for i, size in enumerate(shape) if size == 1 and grad.shape[added + i] != 1
    )
    return grad.sum(axis=axes, keepdims=True).reshape(shape)


def normalize_axis(operation: str, axis: Any, ndim: int) -> int:
    """An axis as a number from 0 to ndim - 1, or a sentence."""
    try:
        index = operator.index(axis)
    except TypeError:
        raise DtypeError(f"{operation}: an axis is an integer, not {axis!r}") from None
    if not -ndim <= index < ndim:
        raise RangeError(f"{operation}: axis {index} does not exist in a tensor of {ndim} axes")
    return index % ndim


def normalize_axes(operation: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """None (all axes), an axis or several, as a sorted tuple without repetition."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(sorted(normalize_axis(operation, a, ndim) for a in given))
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{operation}: axis {axis} names an axis twice")
    return axes


def require_floating(operation: str, **tensors: Any) -> None:
    """Refuse integers and booleans by name."""
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f":
            raise DtypeError(f"{operation}: {name} must be float32 or float64, not {tensor.dtype}")
