"""Launches cast.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...typing import Array, DTypeLike
from . import REALS, SIZES, Device, launcher
from .adamw import THREADS, tensor_table


def expressions(real: str) -> list[str]:
    """The instances that round to `real`: none unless it is a 16-bit type."""
    return [f"rounded_each<{real}, {width}>" for width in (1, 4)] if SIZES[real] == 2 else []


@launcher
def rounded_each(device: Device, calls: Sequence[Sequence[Any]]) -> Any:
    """[(x, dtype), ...] -> each x, float32, as an array of the 16-bit `dtype`, the same one for all."""
    dtype = np.dtype(calls[0][1])
    if any(x.dtype != np.float32 or np.dtype(other) != dtype for x, other in calls) or dtype.itemsize != 2:
        return NotImplemented
    results = [device.empty(x.shape, dtype) for x, _ in calls]
    table, width, blocks = tensor_table(device, [(x, y) for (x, _), y in zip(calls, results, strict=True)])
    real = REALS[dtype.name]
    device.launch("cast", f"rounded_each<{real}, {width}>", real, (blocks,), (THREADS,), (table, len(calls)), 0)
    return tuple(results)


@launcher
def rounded(device: Device, x: Array, dtype: DTypeLike) -> Any:
    """x, float32 -> an array of the 16-bit `dtype`."""
    made = rounded_each(device, [(x, dtype)])
    return made if made is NotImplemented else made[0]
