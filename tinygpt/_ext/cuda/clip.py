"""Launches clip.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...typing import Array
from . import WARP, Device, launcher, real_of
from .adamw import THREADS, tensor_table

EXPRESSIONS = ("squares_of_blocks<{real}, {width}>", "squares_of_tensors<{real}>", "clip_scale<{real}>")


@launcher
def sum_of_squares_each(device: Device, calls: Sequence[Sequence[Any]]) -> Any:
    """[(x,), ...] -> the sum of squares of each x, as Python floats, so this waits for the device."""
    sums = sum_of_squares_on_device(device, calls)
    return sums if sums is NotImplemented else sums.tolist()


@launcher
def sum_of_squares_on_device(device: Device, calls: Sequence[Sequence[Any]]) -> Any:
    """[(x,), ...] -> the sum of squares of each x: (count,) float64, on the device."""
    if len({x.dtype for (x,) in calls}) != 1:
        return NotImplemented
    table, width, blocks = tensor_table(device, calls)
    parts, sums = device.empty((blocks,), np.float64), device.empty((len(calls),), np.float64)
    real = real_of(calls[0][0])
    arguments: tuple[Any, ...] = (table, parts, len(calls))
    device.launch("clip", f"squares_of_blocks<{real}, {width}>", real, (blocks,), (THREADS,), arguments, 0)
    arguments = (table, parts, sums, len(calls), blocks)
    device.launch("clip", f"squares_of_tensors<{real}>", real, (len(calls),), (THREADS,), arguments, 0)
    return sums


@launcher
def clip_scale(device: Device, sums: Array, state: Array, divisor: float, max_norm: float) -> None:
    """sums (count,), state (3,): see tinygpt.optim.clip."""
    real, arguments = real_of(sums), (sums, state, sums.size, float(divisor), float(max_norm))
    device.launch("clip", f"clip_scale<{real}>", real, (1,), (WARP,), arguments, 0)


@launcher
def sum_of_squares(device: Device, x: Array) -> float:
    """x of any shape -> its sum of squares, a Python float."""
    return sum_of_squares_each(device, [(x,)])[0]
