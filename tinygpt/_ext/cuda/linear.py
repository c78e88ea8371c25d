"""Launches linear.cu."""

from __future__ import annotations

from typing import Any

from ...typing import Array
from . import WARP, Device, accumulator_dtype, ceil_div, launcher, pack_width, real_of

EXPRESSIONS = (
    "add_bias<{real}, {width}>",
    "column_sum<{real}, {width}>",
    "sum_of_parts<{accum}>",
)
ROWS, PART_WARPS = 8, 16  # warps per block of the first two kernels and of sum_of_parts, as in linear.cu
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
    """x (N, C) -> (C,), in the accumulators' dtype: sums each chunk of rows, then the chunks in double."""
    N, C = x.shape
    real, width = real_of(x), pack_width(device, C, x)
    rows, grid = tiles(N, C, width)
    tables, (table,) = sum_tables(device, grid[1], x, True)
    device.launch("linear", f"column_sum<{real}, {width}>", real, grid, (WARP, ROWS), (x, table, N, C, rows), 0)
    (total,) = add_up(device, tables, True)
    return total


def sum_tables(device: Device, parts: int, like: Array, *wanted: bool) -> tuple[Array, list[Array | None]]:
    """(tables (count, parts, C), each of them) for the partial sums of up to three vectors of `like`'s (N, C) columns.

    A vector that is not wanted has None instead of its table.
    """
    tables = device.empty((sum(wanted), parts, like.shape[1]), accumulator_dtype(like))
    each = iter(tables)
    return tables, [next(each) if present else None for present in wanted]


def add_up(device: Device, tables: Array, *wanted: bool) -> list[Any]:
    """The sums (C,) over the parts of each of the `sum_tables` (count, parts, C), in one launch; None where none is.

    They are in the accumulators' dtype also for 16-bit arrays: they become gradients of float32 parameters.
    """
    count, parts, C = tables.shape
    real = real_of(tables)
    sums = [device.empty((C,), tables.dtype) for _ in range(count)]
    grid = (ceil_div(C, WARP), count)
    arguments = (tables, *sums, *[None] * (3 - count), parts, C)
    device.launch("linear", f"sum_of_parts<{real}>", real, grid, (WARP, PART_WARPS), arguments, 0)
    each = iter(sums)
    return [next(each) if present else None for present in wanted]
