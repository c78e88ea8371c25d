"""sum, mean, var, max and min, over all axes or some; argmax.

Over n reduced elements:

    y = sum(x)                          dx_i = dy
    y = sum(x) / n                      dx_i = dy / n
    y = sum((x - mean)**2) / m          dx_i = dy * 2 (x_i - mean) / m            m = n - correction
    y = max(x), y = min(x)              dx_i = dy * [x_i = y] / sum over l of [x_l = y]

In the variance, x_j also changes the mean, which would add -2/m * sum(x_i - mean) / n, but that sum is zero. In the
maximum and minimum, tied elements share the gradient equally, so that the result does not depend on their order.
argmax is an integer, the index of the maximum, and has no gradient.

Saved: only the shape for sum and mean; x and the mean, in float64, for var; x and y for max and min. Unless keepdims
was given, dy has fewer axes than x: `_expand` puts them back with size 1, and broadcasting repeats dy over x.

Long sums accumulate in float64 even for float32: if a float32 sum has a million terms of one size, adding another
loses 20 of its 24 bits. Means and variances are also divided in float64 and rounded once, since a sum may overflow
float32 even if the mean does not. For float64 there is no wider type, so x is scaled by a power of two first
(`_exact_sum`).

No oracle: sum and max are primitive operations. The tests compare the others with these (a mean is a sum divided), and
check differences.

Shapes: x any; y without the reduced axes, or with size 1 there (keepdims).
Source: the derivatives are elementary; long sums in higher precision: Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd edition, 2002, chapter 4.
"""

from __future__ import annotations

from typing import Any

from ..backends import array_module
from ..backends.precision import upcast
from ..checks import number
from ..errors import ShapeError, UsageError
from ..function import Function
from ..tensor import Tensor, as_tensor
from ..typing import Array, Axis, TensorLike
from ._shapes import axis_or_dim, long_sum, normalize_axes, require_floating


class Sum(Function):
    def forward(self, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        self.shape, self.axes = x.shape, axes
        return _exact_sum(x, axes, keepdims) if x.dtype == "float64" else long_sum(x, axes, keepdims)

    def backward(self, dy: Array) -> Array:
        return array_module(dy).broadcast_to(_expand(dy, self.shape, self.axes), self.shape)


class Mean(Function):
    def forward(self, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        self.shape, self.axes = x.shape, axes
        return _exact_sum(x, axes, keepdims, _count(x.shape, axes)).astype(x.dtype, copy=False)

    def backward(self, dy: Array) -> Array:
        dx = _expand(dy, self.shape, self.axes) / _count(self.shape, self.axes)
        return array_module(dy).broadcast_to(dx, self.shape)


class Var(Function):
    def forward(self, x: Array, axes: tuple[int, ...], keepdims: bool, correction: float) -> Array:
        self.axes, self.m = axes, _count(x.shape, axes) - correction
        mean = _exact_sum(x, axes, True, _count(x.shape, axes))  # float64
        self.save(x, mean)
        centered = upcast(x) - mean  # of the shape of x, float64
        return _exact_sum(centered, axes, keepdims, self.m, squares=True).astype(x.dtype, copy=False)

    def backward(self, dy: Array) -> Array:
        x, mean = self.saved
        dx = _expand(dy, x.shape, self.axes) * ((2 / self.m) * (upcast(x) - mean))  # float64
        return dx.astype(x.dtype, copy=False)


class Max(Function):
    method = "max"  # of arrays

    def forward(self, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        y = getattr(x, self.method)(axis=axes, keepdims=True)
        self.axes = axes
        self.save(x, y)
        return y if keepdims else y.squeeze(axes)

    def backward(self, dy: Array) -> Array:
        x, y = self.saved
        chosen = x == y  # of the shape of x
        share = _expand(dy, x.shape, self.axes) / chosen.sum(axis=self.axes, keepdims=True, dtype=x.dtype)
        return share * chosen


class Min(Max):
    method = "min"


def sum(
    x: TensorLike, axis: Axis | None = None, keepdims: bool = False, *, dim: Axis | None = None, keepdim: bool = False
) -> Tensor:
    """The sum over `axis`: None (all axes), an axis, or a tuple of them. Of no elements it is 0.

    dim, keepdim: PyTorch's names for axis and keepdims. Raises RangeError for an axis that does not exist, ShapeError
    for one named twice.
    """
    x, axis = as_tensor(x), axis_or_dim("sum", axis, dim)
    return Sum.apply(x, axes=normalize_axes("sum", axis, x.ndim), keepdims=keepdims or keepdim)


def mean(
    x: TensorLike, axis: Axis | None = None, keepdims: bool = False, *, dim: Axis | None = None, keepdim: bool = False
) -> Tensor:
    """The mean over `axis`: None (all axes), an axis, or a tuple of them.

    dim, keepdim: PyTorch's names for axis and keepdims. Raises ShapeError for the mean of no elements, RangeError for
    an axis that does not exist, DtypeError unless x is floating-point.
    """
    x, axes = _checked("mean", x, axis_or_dim("mean", axis, dim))
    require_floating("mean", x=x)
    return Mean.apply(x, axes=axes, keepdims=keepdims or keepdim)


def var(
    x: TensorLike,
    axis: Axis | None = None,
    keepdims: bool = False,
    correction: float = 1,
    *,
    dim: Axis | None = None,
    keepdim: bool = False,
) -> Tensor:
    """The variance over `axis`: the sum of squared distances from the mean, divided by (their number - correction).

    correction: 1, as in PyTorch, estimates the variance of a population from a sample; 0, as in NumPy and in layer
    normalisation, gives the variance of the elements themselves.
    dim, keepdim: PyTorch's names for axis and keepdims.

    Raises ShapeError unless there are more than `correction` elements, RangeError, DtypeError.
    """
    axis = axis_or_dim("var", axis, dim)
    x, axes = _checked("var", x, axis)
    require_floating("var", x=x)
    correction = number("var", "correction", correction)
    if _count(x.shape, axes) <= correction:
        raise ShapeError(
            f"var: {_count(x.shape, axes)} elements (axis {axis} of shape {x.shape}) have no variance with "
            f"correction={correction}: give more elements or a smaller correction"
        )
    return Var.apply(x, axes=axes, keepdims=keepdims or keepdim, correction=correction)


def max(x: TensorLike, axis: Axis | None = None, keepdims: bool = False, *, dim: None = None) -> Tensor:
    """The largest element over `axis`: None (all axes), an axis, or a tuple of them. Ties share the gradient.

    PyTorch's x.max(dim=...) returns indices too, so that name is not taken here: x.argmax(axis=...) has them.
    Raises ShapeError for the maximum of no elements, RangeError for an axis that does not exist.
    """
    _refuse_dim("max", dim)
    x, axes = _checked("max", x, axis)
    return Max.apply(x, axes=axes, keepdims=keepdims)


def min(x: TensorLike, axis: Axis | None = None, keepdims: bool = False, *, dim: None = None) -> Tensor:
    """The smallest element over `axis`; see `max`."""
    _refuse_dim("min", dim)
    x, axes = _checked("min", x, axis)
    return Min.apply(x, axes=axes, keepdims=keepdims)


def argmax(
    x: TensorLike, axis: int | None = None, keepdims: bool = False, *, dim: int | None = None, keepdim: bool = False
) -> Tensor:
    """The index of the largest element along `axis`, the first of equal ones; None: in the flattened tensor.

    Returns an int64 tensor without a gradient. dim, keepdim: PyTorch's names for axis and keepdims. Raises ShapeError
    if there are no elements, RangeError for an axis that does not exist.
    """
    axis = axis_or_dim("argmax", axis, dim)
    x, axes = _checked("argmax", x, axis if axis is None else (axis,))
    over = None if axis is None else axes[0]
    return Tensor(array_module(x.data).asarray(x.data.argmax(axis=over, keepdims=keepdims or keepdim)))


def _refuse_dim(operation: str, dim: Any) -> None:
    if dim is not None:
        raise UsageError(
            f"{operation}: PyTorch's {operation}(dim={dim}) returns values and indices, this one values alone: write "
            f"x.{operation}(axis={dim})" + (f", and x.argmax(axis={dim}) for the indices" if operation == "max" else "")
        )


def _checked(operation: str, x: TensorLike, axis: Axis) -> tuple[Tensor, tuple[int, ...]]:
    x = as_tensor(x)
    axes = normalize_axes(operation, axis, x.ndim)
    if _count(x.shape, axes) == 0:
        raise ShapeError(
            f"{operation}: axis {axis} of shape {x.shape} has no elements: there is no {operation} of none"
        )
    return x, axes


def _exact_sum(x: Array, axes: tuple[int, ...], keepdims: bool, divisor: float = 1, squares: bool = False) -> Array:
    """The sum of x, or of its squares, over `axes`, divided by `divisor`, in float64 and without overflow on the way.

    Sums of float32 numbers or of their squares can't overflow float64. float64 numbers are scaled by a power of two,
    which is exact, so that the largest is about 1.
    """
    xp = array_module(x)
    x = upcast(x)
    scale: Any = 1.0  # a number or an array without axes
    if x.dtype == "float64" and x.size:
        exponent = xp.frexp(abs(x).max(axis=axes, keepdims=True))[1]  # 0 for 0, infinities and NaN
        x = xp.ldexp(x, -exponent)
        scale = exponent if keepdims else exponent.squeeze(axes)
    total = (xp.square(x, dtype="float64") if squares else x).sum(axis=axes, keepdims=keepdims, dtype="float64")
    return total / divisor if isinstance(scale, float) else xp.ldexp(total / divisor, (1 + squares) * scale)


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many elements are reduced to each result."""
    count = 1
    for axis in axes:
        count *= shape[axis]
    return count


def _expand(dy: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """dy with size 1 in place of the reduced axes, whether they were kept or not."""
    return dy.reshape(tuple(1 if axis in axes else size for axis, size in enumerate(shape)))
