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
from .linear import add_up, sum_tables

EXPRESSIONS = ("layer_norm_forward<{real}, {width}>", "layer_norm_backward<{real}, {width}>")
BLOCKS = 2048  # at most, of a backward pass; each writes one row of partial sums
ROWS = 4  # at least, of a block


def row_chunks(N: int) -> tuple[int, int]:
    """(rows per block, blocks) of a backward pass over N rows.

    A block waits for memory twice a row, so many blocks must share a multiprocessor; 512 of them reached a fifth of an
    H200's bandwidth. With fewer than four rows a block, partial sums would be most of the traffic.
    """
    rows = max(ROWS, ceil_div(N, BLOCKS))
    return rows, ceil_div(N, rows)


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
    rows, blocks = row_chunks(N)
    dx = device.empty((N, C), x.dtype)
    tables, (dweight, dbias) = sum_tables(device, blocks, x, True, has_bias)
    width = pack_width(device, C, dy, x, weight, dx)
    device.launch(
        "layer_norm", f"layer_norm_backward<{real}, {width}>", real, (blocks,), (row_threads(C, width),),
        (dy, x, weight, mean, rstd, dx, dweight, dbias, N, C, rows), shared,
    )  # fmt: skip
    return dx, *add_up(device, tables, True, has_bias)
