"""Launches dropout.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...typing import Array
from . import Device, ceil_div, launcher, pack_width, real_of

EXPRESSIONS = ("dropout_apply<{real}, {width}>",)
THREADS = 256


def mask_arguments(device: Device, p: float, seed: int, stream: int, first_row: int) -> tuple[Any, ...]:
    """(threshold, keep, seed, stream, base, first_row), with the types that the kernels declare; threshold 0 keeps
    every element.

    `stream` is relative to the offset stored at `base`, or absolute if there is no base: see `stream_of` in philox.cuh.
    """
    threshold = min(round(p * 2**32), 2**32 - 1)  # as in tinygpt/ops/dropout.py
    begin, base = device.rng_stream_base
    key = np.uint64(seed), np.uint64((stream - begin) % 2**64)
    return np.uint32(threshold), np.float64(1.0 / (1.0 - p)), *key, base, np.uint32(first_row % 2**32)


@launcher
def dropout_apply(device: Device, x: Array, p: float, seed: int, stream: int, first_row: int = 0) -> Array:
    """x (N, C) -> x * mask / (1 - p) (N, C)."""
    N, C = x.shape
    y = device.empty((N, C), x.dtype)
    width = pack_width(device, C, x, y)
    blocks = ceil_div(N * C // width, THREADS)
    kernel, real = f"dropout_apply<{real_of(x)}, {width}>", real_of(x)
    arguments = (x, y, N, C, *mask_arguments(device, p, seed, stream, first_row))
    device.launch("dropout", kernel, real, (blocks,), (THREADS,), arguments, 0)
    return y
