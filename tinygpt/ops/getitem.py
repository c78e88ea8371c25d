"""Indexing: integers, slices, `...`, None, boolean masks and integer arrays, as in NumPy.

y picks elements of x. The backward pass puts dy back where the elements came from and leaves zeros elsewhere. An
element that was picked several times gets the sum of its copies' gradients:

    dx_j = sum over i of [j = key_i] dy_i

Slices, integers and masks never pick an element twice, so a plain assignment is enough. Only integer arrays can repeat
an element. For them we use `add.at`, which adds copy by copy; `dx[key] += dy` would keep only the last copy.

Basic indexing (integers, slices, `...`, None) returns a view of x, any other indexing a copy.

Saved: x's shape and the key, but not x. Arrays in the key are copied, since the caller may refill them before the
backward pass.

No oracle: no number changes. The tests compare it with NumPy's indexing, and check differences.

Shapes: x any; y as NumPy's indexing rules have it.
Source: indexing: Harris et al., "Array programming with NumPy", Nature 585, 2020; the gradient of a gather is a
scatter-add: Griewank, Walther, "Evaluating Derivatives", 2nd edition, 2008, section 3.2.
"""

from __future__ import annotations

from typing import Any

from ..backends import array_module, from_host, is_array
from ..backends.precision import statistics_dtype, upcast
from ..errors import DtypeError, RangeError, UsageError
from ..function import Function
from ..tensor import Tensor, as_tensor
from ..typing import Array, TensorLike


class GetItem(Function):
    def forward(self, x: Array, key: tuple[Any, ...]) -> Array:
        self.shape, self.key = x.shape, key
        return x[key]

    def backward(self, dy: Array) -> Array:
        xp = array_module(dy)
        if any(is_array(part) and part.dtype.kind in "iu" for part in self.key):
            dx = xp.zeros(self.shape, statistics_dtype(dy.dtype))  # 16-bit copies are added in float32
            xp.add.at(dx, self.key, upcast(dy))
            return dx.astype(dy.dtype, copy=False)
        dx = xp.zeros(self.shape, dtype=dy.dtype)
        dx[self.key] = dy
        return dx


def getitem(x: TensorLike, key: Any) -> Tensor:
    """x[key]. Tensors and lists of integers or booleans in the key are treated as arrays.

    Raises RangeError for an index outside its axis or a mask of the wrong shape, DtypeError for a key of another type.
    """
    x = as_tensor(x)
    parts = key if isinstance(key, tuple) else (key,)
    parts = tuple(_part(part) for part in parts)
    if x.backend == "cupy":
        _check_for_gpu(x, key, parts)
    parts = tuple(from_host("getitem", "indices", part, x.data) if is_array(part) else part for part in parts)
    if not any(part is Ellipsis for part in parts):
        parts = (*parts, Ellipsis)  # x[0, 0, ...] is a view without axes where x[0, 0] would be a copy
    try:
        return GetItem.apply(x, key=parts)
    except IndexError as error:
        raise RangeError(f"getitem: {key!r} does not index a tensor of shape {x.shape}: {error}") from None
    except UsageError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(f"getitem: {key!r} does not index a tensor of shape {x.shape}: {error}") from None


def _part(part: Any) -> Any:
    """One part of a key, its arrays as plain arrays."""
    if part is None or part is Ellipsis or isinstance(part, slice) or type(part) is int:
        return part
    if isinstance(part, Tensor):
        part = part.data
    elif not is_array(part):
        part = _as_array(part)
    if part.dtype.kind not in "iub":
        raise DtypeError(f"getitem: an index is made of integers, slices, booleans, None or `...`, not {part.dtype}")
    if part.ndim == 0 and part.dtype.kind in "iu":
        return int(part)
    return part


def _check_for_gpu(x: Tensor, key: Any, parts: tuple[Any, ...]) -> None:
    """Check a key for CuPy, which lets an index beyond the end of an axis wrap around. Raises RangeError."""
    taken = [0 if p is None or p is Ellipsis else p.ndim if is_array(p) and p.dtype.kind == "b" else 1 for p in parts]
    axis = 0
    for part, count in zip(parts, taken, strict=True):
        if is_array(part) and axis + count <= x.ndim:  # CuPy itself refuses a key with too many parts
            size = x.shape[axis : axis + count]
            if part.dtype.kind == "b":
                fits = part.shape == size
            else:
                fits = part.size == 0 or (int(part.min()) >= -size[0] and int(part.max()) < size[0])
            if not fits:
                raise RangeError(f"getitem: {key!r} does not index a tensor of shape {x.shape}: axis {axis} is {size}")
        axis += x.ndim - sum(taken) if part is Ellipsis else count


def _as_array(part: Any) -> Array:
    import numpy as np

    try:
        array = np.asarray(part)
    except ValueError:
        raise DtypeError(f"getitem: {part!r} can't be converted to an array: its rows differ in length") from None
    return array.astype(np.int64) if array.size == 0 and array.dtype == np.float64 else array  # [] picks nothing
