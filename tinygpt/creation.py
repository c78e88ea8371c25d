"""Tensors made from a shape, under PyTorch's names: zeros, ones, randn, arange.

    tg.zeros(2, 3)          tg.zeros((2, 3))          tg.randn(2, 3, requires_grad=True)          tg.arange(5)

backend: "numpy" or "cupy", PyTorch's "cpu" or "cuda"; None means the current one.
"""

from __future__ import annotations

import math

import numpy as np

from .checks import number, whole_number
from .errors import UsageError
from .random import Generator, default_generator
from .tensor import Tensor, check_dtype, tensor
from .typing import DTypeLike, Shape, Sizes


def zeros(
    *shape: Sizes, dtype: DTypeLike = np.float32, requires_grad: bool = False, backend: str | None = None
) -> Tensor:
    """A tensor of zeros. Raises UsageError, DtypeError."""
    return tensor(np.zeros(_shape("zeros", shape), check_dtype(dtype)), requires_grad, backend=backend)


def ones(
    *shape: Sizes, dtype: DTypeLike = np.float32, requires_grad: bool = False, backend: str | None = None
) -> Tensor:
    """A tensor of ones. Raises UsageError, DtypeError."""
    return tensor(np.ones(_shape("ones", shape), check_dtype(dtype)), requires_grad, backend=backend)


def randn(
    *shape: Sizes,
    dtype: DTypeLike = np.float32,
    requires_grad: bool = False,
    backend: str | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Samples from the standard normal distribution; generator: None means the one that `tinygpt.manual_seed` seeds.

    The numbers are not PyTorch's for the same seed. Raises UsageError, DtypeError.
    """
    if generator is not None and not isinstance(generator, Generator):
        raise UsageError(f"randn: generator must be a tinygpt.Generator, not {type(generator).__name__}")
    drawn = (generator or default_generator).normal(_shape("randn", shape), dtype=check_dtype(dtype))
    return tensor(drawn, requires_grad, backend=backend)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
    backend: str | None = None,
) -> Tensor:
    """start, start + step, ... below stop; arange(n): 0 .. n - 1. int64 for integers, else float32, as in PyTorch.

    Raises UsageError, DtypeError.
    """
    start, stop = (0, start) if stop is None else (start, stop)
    given = (("start", start), ("stop", stop), ("step", step))
    start, stop, step = (value if isinstance(value, int) else number("arange", name, value) for name, value in given)
    if step == 0:
        raise UsageError("arange: step must not be 0")
    whole = all(isinstance(value, int) for value in (start, stop, step))
    values = start + step * np.arange(max(0, math.ceil((stop - start) / step)))
    return tensor(
        values.astype(check_dtype(dtype or (np.int64 if whole else np.float32))), requires_grad, backend=backend
    )


def _shape(operation: str, given: tuple[Sizes, ...]) -> Shape:
    sizes = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    return tuple(whole_number(operation, "a size", size, at_least=0) for size in sizes)
