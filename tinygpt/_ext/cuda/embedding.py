"""Launches embedding.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...typing import Array
from . import MAX_BLOCKS, Device, accumulator_dtype, ceil_div, launcher, pack_width, real_of, row_threads

EXPRESSIONS = (
    "embedding_forward<{real}, {width}>",
    "embedding_backward<{real}, {width}>",
    "embedding_add_parts<{real}, {width}>",
)
PIECE = 32  # as in embedding.cu
THREADS = 128


@launcher
def embedding_forward(device: Device, weight: Array, ids: Array) -> Array:
    """weight (V, C), ids (N,) -> y (N, C)."""
    (N,), (V, C) = ids.shape, weight.shape
    y = device.empty((N, C), weight.dtype)
    width = pack_width(device, C, weight, y)
    kernel, real = f"embedding_forward<{real_of(weight)}, {width}>", real_of(weight)
    threads = min(row_threads(C, width), 256)
    device.launch("embedding", kernel, real, (N,), (threads,), (weight, ids, y, np.int64(V), C), 0)
    return y


@launcher
def embedding_backward(device: Device, dy: Array, ids: Array, dweight: Array) -> Any:
    """Adds dy (N, C) into dweight (V, C): row n of dy goes to row ids[n], for ids (N,)."""
    (N, C), V = dy.shape, len(dweight)
    xp, real = device.xp, real_of(dy)
    pieces = ceil_div(N, PIECE)
    width = pack_width(device, C, dy, dweight)
    threads = min(row_threads(C, width), THREADS)
    grid = (pieces, ceil_div(C, width * threads))
    if grid[1] > MAX_BLOCKS:
        return NotImplemented
    order = xp.argsort(ids, kind="stable").astype(xp.int64, copy=False)  # (N,)
    sorted_ids = ids[order]  # (N,)
    parts = device.empty((pieces, 2, C), accumulator_dtype(dy))
    arguments: tuple[Any, ...] = (dy, order, sorted_ids, dweight, parts, N, np.int64(V), C)
    device.launch("embedding", f"embedding_backward<{real}, {width}>", real, grid, (threads,), arguments, 0)
    if pieces > 1:
        arguments = (sorted_ids, parts, dweight, N, np.int64(V), C)
        device.launch("embedding", f"embedding_add_parts<{real}, {width}>", real, grid, (threads,), arguments, 0)
    return None
