"""Launches rms_norm.cu."""

from __future__ import annotations

from typing import Any

from ...typing import Array
from . import (
    FOR_REDUCTIONS,
    MAX_SHARED,
    Device,
    accumulator_dtype,
    as_accumulators,
    launcher,
    pack_width,
    real_of,
    row_threads,
)
from .layer_norm import row_chunks
from .linear import add_up, sum_tables

EXPRESSIONS = ("rms_norm_forward<{real}, {width}>", "rms_norm_backward<{real}, {width}>")


@launcher
def rms_norm_forward(device: Device, x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """x (N, C), weight (C,) -> y (N, C), rstd (N,)."""
    N, C = x.shape
    real = real_of(x)
    y, rstd = device.empty((N, C), x.dtype), device.empty((N,), accumulator_dtype(x))
    width = pack_width(device, C, x, weight, y)
    kernel = f"rms_norm_forward<{real}, {width}>"
    arguments = (x, weight, y, rstd, C, float(eps))
    device.launch("rms_norm", kernel, real, (N,), (row_threads(C, width),), arguments, 0)
    return y, rstd


@launcher
def rms_norm_backward(device: Device, dy: Array, x: Array, weight: Array, rstd: Array) -> Any:
    """dy, x (N, C), weight (C,), rstd (N,) -> dx (N, C), dweight (C,)."""
    N, C = x.shape
    real, accum = real_of(x), accumulator_dtype(x)
    shared = C * accum.itemsize
    if shared > MAX_SHARED - FOR_REDUCTIONS:
        return NotImplemented
    (rstd,) = as_accumulators(dy, rstd)
    rows, blocks = row_chunks(N)
    dx = device.empty((N, C), x.dtype)
    tables, (dweight,) = sum_tables(device, blocks, x, True)
    width = pack_width(device, C, dy, x, weight, dx)
    kernel = f"rms_norm_backward<{real}, {width}>"
    arguments = (dy, x, weight, rstd, dx, dweight, N, C, rows)
    device.launch("rms_norm", kernel, real, (blocks,), (row_threads(C, width),), arguments, shared)
    return dx, *add_up(device, tables, True)
