"""Launches silu.cu."""

from __future__ import annotations

from ...typing import Array
from . import Device, elementwise, launcher

EXPRESSIONS = ("silu_forward<{real}, {width}>", "silu_backward<{real}, {width}>")


@launcher
def silu_forward(device: Device, x: Array) -> Array:
    """x of any shape -> y of that shape."""
    return elementwise(device, "silu", "silu_forward<{real}, {width}>", x)


@launcher
def silu_backward(device: Device, dy: Array, x: Array, out: Array | None = None) -> Array:
    """dy, x of the same shape -> dx."""
    return elementwise(device, "silu", "silu_backward<{real}, {width}>", dy, x)
