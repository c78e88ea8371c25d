"""Helpers that many operations share: undoing a broadcast, checking shapes and axes."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..backends import array_module
from ..backends.precision import is_floating, upcast
from ..backends.recording import noted
from ..errors import DtypeError, RangeError, ShapeError, UsageError
from ..tensor import Tensor
from ..typing import Array, Axis, Shape


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an input of `shape` was repeated.

    Broadcasting copies an element many times; the gradient of the element is the sum of its copies' gradients.
    """
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    axes = tuple(range(added)) + tuple(added + i for i, size in enumerate(shape) if size == 1)
    return long_sum(grad, axes, True).reshape(shape)


@noted
def long_sum(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """The sum over `axes`, accumulated in float64 and rounded once to x's dtype (integers: int64)."""
    if not is_floating(x.dtype):
        return x.sum(axis=axes, keepdims=keepdims)
    return upcast(x).sum(axis=axes, keepdims=keepdims, dtype="float64").astype(x.dtype, copy=False)


@noted
def added(a: Array, b: Array) -> Array:
    """a + b. A separate function, so that a recorded step can replay it (`noted`)."""
    return a + b


@noted
def zeros(shape: Shape, like: Array) -> Array:
    """Zeros, of `like`'s library and dtype."""
    return array_module(like).zeros(shape, dtype=like.dtype)


def broadcast_shape(operation: str, *tensors: Tensor) -> tuple[int, ...]:
    """The shape that all of them broadcast to. Raises ShapeError."""
    first = tensors[0].shape
    if all(tensor.shape == first for tensor in tensors):
        return first
    try:
        return np.broadcast_shapes(*[tensor.shape for tensor in tensors])
    except ValueError:
        shapes = " and ".join(str(tensor.shape) for tensor in tensors)
        raise ShapeError(
            f"{operation}: shapes {shapes} do not fit: counted from the last, axes must be equal or one of them 1"
        ) from None


def axis_or_dim(operation: str, axis: Any, dim: Any, default: Any = None) -> Any:
    """`axis`, or `dim`, PyTorch's name for it, if that was given. Raises UsageError if both were."""
    if dim is None:
        return axis
    if axis != default:
        raise UsageError(f"{operation}: axis={axis} and dim={dim} mean the same: give one of them")
    return dim


def normalize_axis(operation: str, axis: int, ndim: int) -> int:
    """An axis as a number from 0 to ndim - 1. Raises DtypeError, RangeError."""
    try:
        index = operator.index(axis)
    except TypeError:
        raise DtypeError(f"{operation}: an axis is an integer, not {axis!r}") from None
    if not -ndim <= index < ndim:
        raise RangeError(f"{operation}: axis {index} does not exist in a tensor of {ndim} axes")
    return index % ndim


def normalize_axes(operation: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """None (all axes), an axis or several, as a sorted tuple. Raises ShapeError if an axis is named twice."""
    if axis is None:
        return tuple(range(ndim))
    given = (axis,) if isinstance(axis, int) or not isinstance(axis, (tuple, list)) else axis
    axes = tuple(sorted(normalize_axis(operation, a, ndim) for a in given))
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{operation}: axis {axis} names an axis twice")
    return axes


def require_tensors(operation: str, **values: Any) -> None:
    """Raise DtypeError for the first value that is not a tensor, with its name."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise DtypeError(
                f"{operation}: {name} must be a tensor, not {type(value).__name__}: make one with tinygpt.tensor(...)"
            )


def require_floating(operation: str, **tensors: Any) -> None:
    """Raise DtypeError for the first value that is not a floating-point tensor, with its name."""
    require_tensors(operation, **tensors)
    for name, tensor in tensors.items():
        if not is_floating(tensor.dtype):
            raise DtypeError(f"{operation}: {name} must be float32 or float64, not {tensor.dtype}")
