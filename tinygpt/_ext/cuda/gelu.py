"""Launches gelu.cu."""

from __future__ import annotations

from ...typing import Array
from . import WARP, Device, elementwise, launcher, pack_width, real_of
from .linear import ROWS, add_up, sum_tables, tiles

EXPRESSIONS = (
    "gelu_forward<Tanh, {real}, {width}>",
    "gelu_backward<Tanh, {real}, {width}>",
    "gelu_forward<Erf, {real}, {width}>",
    "gelu_backward<Erf, {real}, {width}>",
    "bias_gelu_forward<{real}, {width}>",
    "bias_gelu_backward<{real}, {width}>",
)


@launcher
def gelu_forward(device: Device, x: Array) -> Array:
    """x of any shape -> y of that shape, tanh form."""
    return elementwise(device, "gelu", "gelu_forward<Tanh, {real}, {width}>", x)


@launcher
def gelu_backward(device: Device, dy: Array, x: Array, out: Array | None = None) -> Array:
    """dy, x of the same shape -> dx, tanh form."""
    return elementwise(device, "gelu", "gelu_backward<Tanh, {real}, {width}>", dy, x)


@launcher
def gelu_erf_forward(device: Device, x: Array) -> Array:
    """x of any shape -> y of that shape, erf form."""
    return elementwise(device, "gelu", "gelu_forward<Erf, {real}, {width}>", x)


@launcher
def gelu_erf_backward(device: Device, dy: Array, x: Array, out: Array | None = None) -> Array:
    """dy, x of the same shape -> dx, erf form."""
    return elementwise(device, "gelu", "gelu_backward<Erf, {real}, {width}>", dy, x)


@launcher
def bias_gelu_forward(device: Device, x: Array, bias: Array) -> Array:
    """x (N, C), bias (C,) -> y (N, C)."""
    N, C = x.shape
    y = device.empty((N, C), x.dtype)
    width = pack_width(device, C, x, bias, y)
    rows, grid = tiles(N, C, width)
    kernel, real = f"bias_gelu_forward<{real_of(x)}, {width}>", real_of(x)
    device.launch("gelu", kernel, real, grid, (WARP, ROWS), (x, bias, y, N, C, rows), 0)
    return y


@launcher
def bias_gelu_backward(
    device: Device, dy: Array, x: Array, bias: Array, out: Array | None = None
) -> tuple[Array, Array]:
    """dy, x (N, C), bias (C,) -> dx (N, C), dbias (C,)."""
    N, C = x.shape
    dx = device.empty((N, C), x.dtype)
    width = pack_width(device, C, dy, x, bias, dx)
    rows, grid = tiles(N, C, width)
    tables, (dbias,) = sum_tables(device, grid[1], x, True)
    kernel, real = f"bias_gelu_backward<{real_of(x)}, {width}>", real_of(x)
    device.launch("gelu", kernel, real, grid, (WARP, ROWS), (dy, x, bias, dx, dbias, N, C, rows), 0)
    (dbias,) = add_up(device, tables, True)
    return dx, dbias
