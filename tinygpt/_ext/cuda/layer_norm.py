"""Launches layer_norm.cu."""

from __future__ import annotations

from typing import Any

from ...typing import Array
from . import (
    FOR_REDUCTIONS,
    MAX_SHARED,
    Device,
    accumulator_dtype,
    as_accumulators,
    ceil_div,
    launcher,
    pack_width,
    real_of,
    row_threads,
)
from .linear import add_up

EXPRESSIONS = ("layer_norm_forward<{real}, {width}>", "layer_norm_backward<{real}, {width}>")
BLOCKS = 512  # maximum number of blocks of a backward pass; each writes one row of partial sums


@launcher
def layer_norm_forward(device: Device, x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """x (N, C), weight (C,), bias (C,) or None -> y (N, C), mean (N, 2), rstd (N,)."""
    N, C = x.shape
    real = real_of(x)
    y = device.empty((N, C), x.dtype)
    mean, rstd = device.empty((N, 2), accumulator_dtype(x)), device.empty((N,), accumulator_dtype(x))
    width = pack_width(device, C, x, weight, bias, y)
    device.launch(
        "layer_norm", f"layer_norm_forward<{real}, {width}>", real, (N,), (row_threads(C, width),),
        (x, weight, bias, y, mean, rstd, C, float(eps)), 0,
    )  # fmt: skip
    return y, mean, rstd


@launcher
def layer_norm_backward(
    device: Device, dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, has_bias: bool = True
) -> Any:
    """dy, x (N, C), weight (C,), mean (N, 2), rstd (N,) -> dx (N, C), dweight (C,), dbias (C,) or None."""
    N, C = x.shape
    real, accum = real_of(x), accumulator_dtype(x)
    shared = (1 + has_bias) * C * accum.itemsize
    if shared > MAX_SHARED - FOR_REDUCTIONS:
        return NotImplemented
    mean, rstd = as_accumulators(dy, mean, rstd)
    rows = ceil_div(N, BLOCKS)
    blocks = ceil_div(N, rows)
    dx = device.empty((N, C), x.dtype)
    dweight = device.empty((blocks, C), accum)
    dbias = device.empty((blocks, C), accum) if has_bias else None
    width = pack_width(device, C, dy, x, weight, dx)
    device.launch(
        "layer_norm", f"layer_norm_backward<{real}, {width}>", real, (blocks,), (row_threads(C, width),),
        (dy, x, weight, mean, rstd, dx, dweight, dbias, N, C, rows), shared,
    )  # fmt: skip
    return dx, add_up(device, dweight, x.dtype), None if dbias is None else add_up(device, dbias, x.dtype)
