"""Launches silu.cu."""

from __future__ import annotations

from typing import Any

from . import Device, elementwise, launcher

EXPRESSIONS = ("silu_forward<{real}, {width}>", "silu_backward<{real}, {width}>")


@launcher
def silu_forward(device: Device, x: Any) -> Any:
    """x of any shape -> y of that shape."""
    return elementwise(device, "silu", "silu_forward<{real}, {width}>", x)


@launcher
def silu_backward(device: Device, dy: Any, x: Any, out: Any = None) -> Any:
    """dy, x of one shape -> dx."""
    return elementwise(device, "silu", "silu_backward<{real}, {width}>", dy, x)
