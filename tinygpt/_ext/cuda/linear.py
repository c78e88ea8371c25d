"""Launches linear.cu."""

from __future__ import annotations

import numpy as np

from ...typing import Array, DTypeLike
from . import REALS, WARP, Device, accumulator_dtype, ceil_div, launcher, pack_width, real_of

EXPRESSIONS = (
    "add_bias<{real}, {width}>",
    "column_sum<{real}, {accum}, {accum}, {width}>",
    "column_sum<{accum}, double, {real}, {wide}>",
)
ROWS = 8  # warps per block, as in linear.cu
CHUNKS = 256  # maximum number of chunks of rows


def tiles(N: int, C: int, width: int) -> tuple[int, tuple[int, int]]:
    """(rows per chunk, grid) for an (N, C) array in tiles 32 packs wide; a chunk has at least two rows per warp."""
    rows = max(2 * ROWS, ceil_div(N, CHUNKS))
    return rows, (ceil_div(C, WARP * width), ceil_div(N, rows))


@launcher
def add_bias(device: Device, y: Array, bias: Array) -> Array:
    """y (N, C) += bias (C,); returns y."""
    N, C = y.shape
    width = pack_width(device, C, y, bias)
    rows, grid = tiles(N, C, width)
    kernel, real = f"add_bias<{real_of(y)}, {width}>", real_of(y)
    device.launch("linear", kernel, real, grid, (WARP, ROWS), (y, bias, N, C, rows), 0)
    return y


@launcher
def column_sum(device: Device, x: Array) -> Array:
    """x (N, C) -> (C,): the sum of each column. Sums each chunk of rows, then the chunks in double."""
    N, C = x.shape
    real, accum = real_of(x), REALS[accumulator_dtype(x).name]
    width = pack_width(device, C, x)
    rows, grid = tiles(N, C, width)
    table = device.empty((grid[1], C), accumulator_dtype(x))
    kernel = f"column_sum<{real}, {accum}, {accum}, {width}>"
    device.launch("linear", kernel, real, grid, (WARP, ROWS), (x, table, N, C, rows), 0)
    return add_up(device, table, x.dtype)


def add_up(device: Device, table: Array, dtype: DTypeLike) -> Array:
    """Partial sums (parts, C), in an accumulator's dtype -> (C,): the sum of each column, accumulated in double."""
    parts, C = table.shape
    accum, real = real_of(table), REALS[np.dtype(dtype).name]
    y = device.empty((C,), dtype)
    width = pack_width(device, C, table)
    grid = (ceil_div(C, WARP * width), 1)
    device.launch(
        "linear",
        f"column_sum<{accum}, double, {real}, {width}>",
        real,
        grid,
        (WARP, ROWS),
        (table, y, parts, C, parts),
        0,
    )
    return y
