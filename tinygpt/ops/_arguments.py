"""Checks that the neural-network operations make on their arguments: integer ids, one dtype, a probability."""

from __future__ import annotations

import numpy as np

from .. import checks
from ..backends import array_module, is_array
from ..backends.precision import is_floating, statistics_dtype
from ..backends.recording import noted
from ..errors import DtypeError, RangeError, ShapeError, UsageError
from ..random import Generator, default_generator
from ..tensor import Tensor
from ..typing import Array, Shape, TensorLike
from ._shapes import require_tensors


def require_same_dtype(operation: str, **tensors: Tensor) -> None:
    """Raise DtypeError unless all tensors have one floating-point dtype: a silent conversion would cost either
    precision or speed."""
    require_tensors(operation, **tensors)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not is_floating(next(iter(dtypes))):
        came = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise DtypeError(f"{operation}: its inputs must be of one floating-point dtype, such as float32, not {came}")


def plain_array(operation: str, name: str, value: TensorLike) -> Array:
    """`value` (a tensor, an array or nested lists) as an array. Raises ShapeError for lists of unequal length."""
    array = value.data if isinstance(value, Tensor) else value
    if is_array(array):
        return array
    try:
        return np.asarray(array)
    except ValueError:
        raise ShapeError(f"{operation}: {name} must be an array or nested lists of equal length") from None


def integer_array(operation: str, name: str, value: TensorLike) -> Array:
    """Ids (a tensor, an array or nested lists) as an integer array, on the backend where they are. Raises DtypeError.

    Ids are checked before they are moved to the GPU (`from_host`), since checking them on the host means no waiting.
    """
    return checks.integer_array(f"{operation}: {name}", value.data if isinstance(value, Tensor) else value)


def require_ids(operation: str, name: str, ids: Array, size: int, meaning: str) -> None:
    """Raise RangeError unless all ids are in 0 .. size - 1. The message names the id farthest outside."""
    if ids.size == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        worst = low if -low > high - (size - 1) else high
        raise RangeError(f"{operation}: {name} must be in 0 .. {size - 1} ({meaning}), not {worst}")


def require_probability(operation: str, name: str, p: float) -> float:
    """`p` as a float in [0, 1), the probability of dropping an element. Raises DtypeError, RangeError."""
    try:
        value = float(p)
    except (TypeError, ValueError):
        raise DtypeError(f"{operation}: {name} must be a number in [0, 1), not {p!r}") from None
    if not 0.0 <= value < 1.0:
        raise RangeError(f"{operation}: {name} must be in [0, 1), not {value}: at 1 nothing would be left to scale up")
    return value


def mask_key(operation: str, generator: Generator | None, rows: int, shape: Shape) -> tuple[int, int, int]:
    """(seed, stream, first row) for one mask of `rows` rows, from the given generator or the default one.

    shape: of the array that the mask is for; its first axis is that of the batch.
    """
    if generator is None:
        generator = default_generator
    elif not isinstance(generator, Generator):
        raise UsageError(f"{operation}: generator must be a tinygpt.Generator, not {type(generator).__name__}")
    each = rows // shape[0] if shape and shape[0] else 0  # mask rows for each row of the batch
    return *generator.next_key(), generator.rows_before * each


@noted
def as_scalar(value: float, like: Array, divisor: float = 1.0) -> Array:
    """value / divisor as a 0-d array of `like`'s library and dtype, or of float32 if that dtype is 16-bit."""
    return array_module(like).asarray(value / divisor, dtype=statistics_dtype(like.dtype))
