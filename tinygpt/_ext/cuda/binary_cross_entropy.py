"""Launches binary_cross_entropy.cu."""

from __future__ import annotations

from ...typing import Array
from . import Device, elementwise, launcher

FILE = "binary_cross_entropy"
FORWARD, BACKWARD = EXPRESSIONS = (
    "binary_cross_entropy_forward<{real}, {width}>",
    "binary_cross_entropy_backward<{real}, {width}>",
)


@launcher
def binary_cross_entropy_forward(device: Device, logits: Array, targets: Array) -> Array:
    """logits, targets of the same shape -> losses of that shape."""
    return elementwise(device, FILE, FORWARD, logits, targets)


@launcher
def binary_cross_entropy_backward(device: Device, dlosses: Array, logits: Array, targets: Array) -> Array:
    """dlosses, logits, targets of the same shape -> dlogits of that shape."""
    return elementwise(device, FILE, BACKWARD, dlosses, logits, targets)
