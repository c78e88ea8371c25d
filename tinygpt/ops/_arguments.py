"""What the neural-network operations ask of their arguments: integer ids, one dtype, a probability."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import checks
from ..backends import array_module, is_array
from ..backends.precision import is_floating, statistics_dtype
from ..errors import DtypeError, RangeError, ShapeError, UsageError
from ..random import Generator, default_generator
from ..tensor import Tensor
from ._shapes import require_tensors


def require_same_dtype(operation: str, **tensors: Tensor) -> None:
    """All of them float32 or all float64, say: mixing them silently would lose one's precision or the other's speed."""
    require_tensors(operation, **tensors)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not is_floating(next(iter(dtypes))):
        came = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise DtypeError(f"{operation}: its inputs must be of one floating-point dtype, such as float32, not {came}")


def plain_array(operation: str, name: str, value: Any) -> Any:
    """The array of a tensor, an array itself, or nested lists as an array."""
    array = value.data if isinstance(value, Tensor) else value
    if is_array(array):
        return array
    try:
        return np.asarray(array)
    except ValueError:
        raise ShapeError(f"{operation}: {name} must be an array or nested lists of equal length") from None


def integer_array(operation: str, name: str, value: Any) -> Any:
    """Ids given as a tensor, an array or nested lists: an integer array, on the backend where it is.

    It is checked there, and goes to the GPU afterwards (`from_host`): what is on the host costs no wait.
    """
    return checks.integer_array(f"{operation}: {name}", value.data if isinstance(value, Tensor) else value)


def require_ids(operation: str, name: str, ids: Any, size: int, meaning: str) -> None:
    """Every id in 0 .. size - 1; the sentence names the one farthest outside."""
    if ids.size == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        worst = low if -low > high - (size - 1) else high
        raise RangeError(f"{operation}: {name} must be in 0 .. {size - 1} ({meaning}), not {worst}")


def require_probability(operation: str, name: str, p: Any) -> float:
    """A probability of dropping, from 0 up to but not including 1."""
    try:
        value = float(p)
    except (TypeError, ValueError):
        raise DtypeError(f"{operation}: {name} must be a number in [0, 1), not {p!r}") from None
    if not 0.0 <= value < 1.0:
        raise RangeError(f"{operation}: {name} must be in [0, 1), not {value}: at 1 nothing would be left to scale up")
    return value


def next_key(operation: str, generator: Generator | None) -> tuple[int, int]:
    """(seed, stream) for one mask, of the given generator or the default one."""
    if generator is None:
        generator = default_generator
    elif not isinstance(generator, Generator):
        raise UsageError(f"{operation}: generator must be a tinygpt.Generator, not {type(generator).__name__}")
    return generator.next_key()


def as_scalar(value: Any, like: Any) -> Any:
    """A number as an array without axes, of `like`'s library and dtype; float32 where that has 16 bits."""
    return array_module(like).asarray(value, dtype=statistics_dtype(like.dtype))
