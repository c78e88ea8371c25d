"""PyTorch's names for what Tensor and the operations do, as methods of Tensor. None defines its own gradient.

Importing this module gives Tensor the methods; `tinygpt/__init__.py` imports it.
"""

from __future__ import annotations

from typing import TypeVar, overload

import numpy as np

from .backends.precision import is_floating
from .errors import DtypeError, UsageError
from .ops._shapes import normalize_axes, normalize_axis
from .ops.cast import cast
from .ops.shape import _permuted, _reshaped, reshape
from .ops.where import where
from .tensor import Tensor
from .typing import Array, Axis, Sizes, TensorLike

METHODS = ("view", "permute", "unsqueeze", "squeeze", "masked_fill", "float", "requires_grad_", "cpu", "cuda")
PROPERTIES = ("size", "device")
_AnyTensor = TypeVar("_AnyTensor", bound=Tensor)


def view(x: Tensor, *shape: Sizes) -> Tensor:
    """`reshape`. PyTorch's view refuses an array that would have to be copied; here it is copied. Raises ShapeError."""
    return _reshaped("view", x, shape)


def permute(x: Tensor, *axes: Sizes) -> Tensor:
    """The axes in another order: x.permute(2, 0, 1) puts axis 2 first. Raises ShapeError unless each is named once."""
    return _permuted("permute", x, axes)


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """A new axis of size 1 at position `dim`, which may be negative. Raises RangeError."""
    (axis,) = normalize_axes("unsqueeze", dim, x.ndim + 1)
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def squeeze(x: Tensor, dim: Axis = None) -> Tensor:
    """Drop axes of size 1: all, or those in `dim`; longer ones are kept, as in PyTorch. Raises RangeError."""
    axes = normalize_axes("squeeze", dim, x.ndim)
    return reshape(x, tuple(size for axis, size in enumerate(x.shape) if size != 1 or axis not in axes))


def masked_fill(x: Tensor, mask: TensorLike, value: TensorLike) -> Tensor:
    """`value` where the mask is true, x elsewhere: `where(mask, value, x)`. Raises ShapeError, DtypeError."""
    return where(mask, value, x)


def float(x: Tensor) -> Tensor:
    """x in float32, so that booleans and integers have a mean: `(predicted == labels).float().mean()`."""
    return cast(x, "float32") if is_floating(x.dtype) else Tensor(x.data.astype(np.float32))


def requires_grad_(x: _AnyTensor, requires_grad: bool = True) -> _AnyTensor:
    """Set `requires_grad` of a leaf. Returns the tensor. Raises DtypeError for integers, UsageError for a result."""
    if x.node is not None:
        raise UsageError("requires_grad_: a result's gradient is decided by its inputs: set theirs, or use detach()")
    if requires_grad and not is_floating(x.dtype):
        raise DtypeError(f"requires_grad_: only floating-point tensors can require a gradient, not {x.dtype}")
    x.requires_grad = bool(requires_grad)
    return x


# Places and sizes -----------------------------------------------------------------------------------


def cpu(x: Tensor) -> Tensor:
    """`x.to("numpy")`."""
    return x.to("numpy")


def cuda(x: Tensor) -> Tensor:
    """`x.to("cupy")`."""
    return x.to("cupy")


def device(x: Tensor) -> str:
    """ "cpu" or "cuda": PyTorch's names for the backends "numpy" and "cupy"."""
    return "cpu" if x.backend == "numpy" else "cuda"


def size(x: Tensor) -> Size:
    """The number of elements, as in NumPy; `x.size()` is the shape and `x.size(0)` its first size, as in PyTorch."""
    return Size(x.data)


class Size(int):
    """What `x.size` is: an integer that can be called."""

    def __new__(cls, array: Array) -> Size:
        made = super().__new__(cls, array.size)
        made._shape = array.shape
        return made

    _shape: tuple[int, ...]  # not `shape`, which NumPy would take for its own

    @overload
    def __call__(self) -> tuple[int, ...]: ...
    @overload
    def __call__(self, dim: int) -> int: ...
    def __call__(self, dim: int | None = None) -> tuple[int, ...] | int:
        """The shape, or its size at `dim`. Raises RangeError for an axis that does not exist."""
        return self._shape if dim is None else self._shape[normalize_axis("size", dim, len(self._shape))]


for _name in METHODS:
    setattr(Tensor, _name, globals()[_name])
for _name in PROPERTIES:
    setattr(Tensor, _name, property(globals()[_name]))
