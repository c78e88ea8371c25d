"""Launches residual_layer_norm.cu."""

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
from .dropout import mask_arguments
from .layer_norm import row_chunks
from .linear import add_up, sum_tables

EXPRESSIONS = ("residual_layer_norm_forward<{real}, {width}>", "residual_layer_norm_backward<{real}, {width}>")


@launcher
def residual_layer_norm_forward(
    device: Device,
    residual: Array,
    x: Array,
    x_bias: Array,
    weight: Array,
    bias: Array,
    eps: float,
    p: float,
    seed: int,
    stream: int,
    first_row: int = 0,
) -> Any:
    """residual, x (N, C); x_bias, bias (C,) or None; weight (C,) -> total, y (N, C), mean (N, 2), rstd (N,)."""
    N, C = x.shape
    real = real_of(x)
    shared = C * x.dtype.itemsize
    if shared > MAX_SHARED - FOR_REDUCTIONS:
        return NotImplemented
    total, y = device.empty((N, C), x.dtype), device.empty((N, C), x.dtype)
    mean, rstd = device.empty((N, 2), accumulator_dtype(x)), device.empty((N,), accumulator_dtype(x))
    width = pack_width(device, C, residual, x, x_bias, weight, bias, total, y)
    device.launch(
        "residual_layer_norm", f"residual_layer_norm_forward<{real}, {width}>", real, (N,), (row_threads(C, width),),
        (residual, x, x_bias, weight, bias, total, y, mean, rstd, C, float(eps),
         *mask_arguments(device, p, seed, stream, first_row)),
        shared,
    )  # fmt: skip
    return total, y, mean, rstd


@launcher
def residual_layer_norm_backward(
    device: Device,
    dy: Array,
    dsum: Array,
    total: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    p: float,
    seed: int,
    stream: int,
    has_x_bias: bool,
    has_bias: bool,
    first_row: int = 0,
) -> Any:
    """dy, dsum, total (N, C), weight (C,), mean (N, 2), rstd (N,) -> dresidual, dx, dx_bias, dweight, dbias.

    dresidual and dx are (N, C), the same array if there is no dropout; the others are (C,), or None without that bias.
    """
    N, C = total.shape
    real, accum = real_of(total), accumulator_dtype(total)
    shared = (1 + has_bias + has_x_bias) * C * accum.itemsize
    if shared > MAX_SHARED - FOR_REDUCTIONS:
        return NotImplemented
    mean, rstd = as_accumulators(dy, mean, rstd)
    rows, blocks = row_chunks(N)
    dresidual = device.empty((N, C), total.dtype)
    mask = mask_arguments(device, p, seed, stream, first_row)
    dx = device.empty((N, C), total.dtype) if mask[0] else dresidual
    wanted = (has_x_bias, True, has_bias)
    tables, (dx_bias, dweight, dbias) = sum_tables(device, blocks, total, *wanted)
    width = pack_width(device, C, dy, dsum, total, weight, dresidual, dx)
    device.launch(
        "residual_layer_norm", f"residual_layer_norm_backward<{real}, {width}>", real, (blocks,),
        (row_threads(C, width),),
        (dy, dsum, total, weight, mean, rstd, dresidual, None if dx is dresidual else dx, dweight, dbias, dx_bias, N, C,
         rows, *mask),
        shared,
    )  # fmt: skip
    return dresidual, dx, *add_up(device, tables, *wanted)
