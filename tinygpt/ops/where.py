"""where: one of two values, chosen element by element.

    y = where(condition, a, b)        da = where(condition, dy, 0)        db = where(condition, 0, dy)

each followed by `unbroadcast`.

If a value was not chosen, its gradient is set to zero, not multiplied by zero: infinity times zero would be NaN.

Saved: the condition.

No oracle: the tests compare it with [condition] * a + [not condition] * b, and check differences.

Shapes: any three that broadcast against one another.
Source: elementary: where the condition holds, y is a.
"""

from __future__ import annotations

import numpy as np

from ..backends import array_module, is_array
from ..errors import DtypeError
from ..function import Function
from ..tensor import Tensor, as_tensor
from ..typing import Array, TensorLike
from ._shapes import broadcast_shape, unbroadcast


class Where(Function):
    def forward(self, condition: Array, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        self.save(condition)
        return array_module(condition).where(condition, a, b)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        ((condition,), (a_shape, b_shape)) = self.saved, self.shapes
        xp = array_module(dy)
        da = unbroadcast(xp.where(condition, dy, 0), a_shape) if self.needs[1] else None
        db = unbroadcast(xp.where(condition, 0, dy), b_shape) if self.needs[2] else None
        return None, da, db


def where(condition: TensorLike, a: TensorLike, b: TensorLike) -> Tensor:
    """a where `condition` is true, b elsewhere.

    condition: a tensor or array of booleans. a, b: tensors or numbers. The three broadcast against one another.
    Raises ShapeError if they do not, DtypeError for a condition that is not boolean.
    """
    like = a if isinstance(a, Tensor) else b if isinstance(b, Tensor) else None
    if isinstance(condition, bool):  # otherwise as_tensor would convert it to the dtype of a or b
        condition = np.bool_(condition)
    elif is_array(condition):
        condition = condition.copy()  # it is saved, and the caller may refill the mask before the backward pass
    condition, a, b = (as_tensor(value, like) for value in (condition, a, b))
    if condition.dtype.kind != "b":
        raise DtypeError(f"where: the condition must be boolean, not {condition.dtype}: compare, as in x > 0")
    broadcast_shape("where", condition, a, b)
    return Where.apply(condition, a, b)
