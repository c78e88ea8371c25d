"""Launches softmax.cu."""

from __future__ import annotations

from typing import Any

from ...typing import Array
from . import Device, launcher, pack_width, real_of, row_threads

EXPRESSIONS = (
    "softmax_forward<{real}, {width}>",
    "softmax_backward<{real}, {width}>",
    "log_softmax_forward<{real}, {width}>",
    "log_softmax_backward<{real}, {width}>",
)


def on_rows(device: Device, kernel: str, *inputs: Any) -> Array:
    """The result (N, C) of a kernel with one block for each row of its inputs (N, C)."""
    N, C = inputs[0].shape
    result = device.empty((N, C), inputs[0].dtype)
    width = pack_width(device, C, *inputs, result)
    name, real = f"{kernel}<{real_of(result)}, {width}>", real_of(result)
    device.launch("softmax", name, real, (N,), (row_threads(C, width),), (*inputs, result, C), 0)
    return result


@launcher
def softmax_forward(device: Device, x: Array) -> Array:
    """x (N, C) -> y (N, C)."""
    return on_rows(device, "softmax_forward", x)


@launcher
def softmax_backward(device: Device, dy: Array, y: Array) -> Array:
    """dy, y (N, C) -> dx (N, C)."""
    return on_rows(device, "softmax_backward", dy, y)


@launcher
def log_softmax_forward(device: Device, x: Array) -> Array:
    """x (N, C) -> z (N, C)."""
    return on_rows(device, "log_softmax_forward", x)


@launcher
def log_softmax_backward(device: Device, dz: Array, z: Array) -> Array:
    """dz, z (N, C) -> dx (N, C)."""
    return on_rows(device, "log_softmax_backward", dz, z)
