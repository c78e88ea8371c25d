"""Launches binary_cross_entropy.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda import Device, ceil_div, launcher, pack_width, real_of

EXPRESSIONS = ("binary_cross_entropy_forward<{real}, {width}>", "binary_cross_entropy_backward<{real}, {width}>")
THREADS = 256


def elementwise(device: Device, kernel: str, *inputs: Any) -> Any:
    """The result of a kernel that computes each element of its result from the same element of its inputs."""
    x = inputs[0]
    if any(array.dtype != x.dtype or array.shape != x.shape for array in inputs):
        return NotImplemented
    result = device.empty(x.shape, x.dtype)
    width = pack_width(device, 0, *inputs, result)  # rows do not matter
    blocks = ceil_div(ceil_div(x.size, width), THREADS)
    name, real = f"{kernel}<{real_of(x)}, {width}>", real_of(x)
    device.launch("binary_cross_entropy", name, real, (blocks,), (THREADS,), (*inputs, result, np.int64(x.size)), 0)
    return result


@launcher
def binary_cross_entropy_forward(device: Device, logits: Any, targets: Any) -> Any:
    """logits, targets of one shape -> losses of that shape."""
    return elementwise(device, "binary_cross_entropy_forward", logits, targets)


@launcher
def binary_cross_entropy_backward(device: Device, dlosses: Any, logits: Any, targets: Any) -> Any:
    """dlosses, logits, targets of one shape -> dlogits."""
    return elementwise(device, "binary_cross_entropy_backward", dlosses, logits, targets)
