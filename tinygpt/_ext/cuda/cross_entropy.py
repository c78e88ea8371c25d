"""Launches cross_entropy.cu."""

from __future__ import annotations

import numpy as np

from ...typing import Array
from . import Device, accumulator_dtype, as_accumulators, launcher, pack_width, real_of, row_threads

EXPRESSIONS = (
    "cross_entropy_forward<{real}, {width}>",
    "cross_entropy_backward<{real}, {width}>",
    "cross_entropy_inplace<{real}, {width}>",
)


@launcher
def cross_entropy_forward(device: Device, logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array]:
    """logits (N, V), targets (N,) -> losses (N,), 0 for ignored targets; lse (N, 2)."""
    N, V = logits.shape
    losses, lse = (device.empty(shape, accumulator_dtype(logits)) for shape in ((N,), (N, 2)))
    width = pack_width(device, V, logits)
    kernel, real = f"cross_entropy_forward<{real_of(logits)}, {width}>", real_of(logits)
    arguments = (logits, targets, losses, lse, V, np.int64(ignore_index))
    device.launch("cross_entropy", kernel, real, (N,), (row_threads(V, width),), arguments, 0)
    return losses, lse


@launcher
def cross_entropy_backward(
    device: Device, dlosses: Array, logits: Array, targets: Array, lse: Array, ignore_index: int
) -> Array:
    """dlosses, targets (N,), lse (N, 2), logits (N, V) -> dlogits (N, V)."""
    N, V = logits.shape
    dlosses, lse = as_accumulators(logits, dlosses, lse)
    dlogits = device.empty((N, V), logits.dtype)
    width = pack_width(device, V, logits, dlogits)
    kernel, real = f"cross_entropy_backward<{real_of(logits)}, {width}>", real_of(logits)
    arguments = (dlosses, logits, targets, lse, dlogits, V, np.int64(ignore_index))
    device.launch("cross_entropy", kernel, real, (N,), (row_threads(V, width),), arguments, 0)
    return dlogits


@launcher
def cross_entropy_inplace(device: Device, logits: Array, targets: Array, ignore_index: int, scale: float) -> Array:
    """Overwrites logits (N, V) with scale * d loss / d logits and returns the losses (N,)."""
    N, V = logits.shape
    losses = device.empty((N,), accumulator_dtype(logits))
    width = pack_width(device, V, logits)
    kernel, real = f"cross_entropy_inplace<{real_of(logits)}, {width}>", real_of(logits)
    arguments = (logits, targets, losses, V, np.int64(ignore_index), float(scale))
    device.launch("cross_entropy", kernel, real, (N,), (row_threads(V, width),), arguments, 0)
    return losses
