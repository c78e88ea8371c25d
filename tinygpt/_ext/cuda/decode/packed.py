"""Launches packed.cu. Products with unpacked weights use the matrix library, which also reads each weight once."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....typing import Array
from .. import WARP, Device, ceil_div, launcher
from ..linear import add_up

ROWS = 8  # warps per block, as in packed.cu
AT_ONCE = (1, 4)  # rows of x by which a thread multiplies each weight it reads
FEW = 16  # above this many rows, unpacking and using the matrix library is faster: these kernels reread the weights
THREADS = 256
BLOCKS = 512  # roughly enough to keep a GPU busy
PACKED = {"uint16": ("bfloat16", 8), "int8": ("int8", 16)}  # (type in packed.cu, weights in 16 bytes)


def expressions(real: str) -> list[str]:
    """The instances of the kernels; x and y are always float32."""
    made = []
    for packed, width in PACKED.values():
        for w in (1, width):
            made += [f"few_rows_product<{packed}, {w}, {rows}>" for rows in AT_ONCE]
            made += [f"few_rows_product_transposed<{packed}, {w}, {rows}>" for rows in AT_ONCE]
        made += [f"unpack_rows<{packed}, {w}>" for w in (1, 4)]
    return made


def is_taken(matrix: Any, axis: int, *floats: Any) -> bool:
    """Whether the kernels support this Matrix: packed, C-contiguous, with scales of the right shape, and multiplied by
    activations as they are."""
    data, scale, group = matrix[:3]
    if (
        matrix.activations is not None
        or data.dtype.name not in PACKED
        or (data.dtype.name == "int8") != (scale is not None)
    ):
        return False
    arrays = [a for a in (data, scale, *floats) if a is not None]
    if any(a.ndim != 2 or not a.flags.c_contiguous or a.size == 0 or max(a.shape) >= 2**30 for a in arrays):
        return False
    if any(a.dtype != np.float32 for a in arrays[1:]):
        return False
    shape = list(data.shape)
    shape[axis] = ceil_div(shape[axis], group) if group else 1
    return scale is None or scale.shape == tuple(shape)


def widest(device: Device, matrix: Any, axis: int, most: int, *others: Any) -> int:
    """Weights per memory access: `most`, or 1 if the row length, the group size or an address does not allow that."""
    data, scale, group = matrix[:3]
    length = data.shape[1]
    addresses = [device.address(a) for a in (data, scale, *others) if a is not None]
    packed = length % most == 0 and all(address % 16 == 0 for address in addresses)
    if axis == 1 and scale is not None and group < length:
        packed = packed and group % most == 0
    return most if packed else 1


def unpacked(device: Device, matrix: Any, axis: int) -> Array:
    return unpack_into(device, device.empty(matrix.data.shape, np.float32), matrix, axis)


@launcher
def few_rows_product(device: Device, x: Array, matrix: Any) -> Array:
    """x (M, K) float32, matrix (K, N) -> (M, N)."""
    if not is_taken(matrix, 0, x) or x.shape[1] != matrix.data.shape[0]:
        return NotImplemented
    (M, K), N = x.shape, matrix.data.shape[1]
    if M > FEW or M * N >= 2**30:  # the table's columns are counted in 32 bits
        return x @ unpacked(device, matrix, 0)
    packed, most = PACKED[matrix.data.dtype.name]
    width = widest(device, matrix, 0, most)
    rows = AT_ONCE[0] if M == 1 else AT_ONCE[1]
    columns = ceil_div(N, WARP * width)
    chunks = max(1, min(BLOCKS // columns, ceil_div(K, 2 * ROWS)))  # independent of M, so a row's bits are too
    length = ceil_div(K, chunks)
    chunks = ceil_div(K, length)
    table = device.empty((chunks, M * N), np.float32)
    device.launch(
        "packed", f"few_rows_product<{packed}, {width}, {rows}>", "float", (columns, chunks, ceil_div(M, rows)),
        (WARP, ROWS), (x, matrix.data, matrix.scale, table, M, K, N, matrix.group or K, length), 0,
    )  # fmt: skip
    if chunks > 1:
        (table,) = add_up(device, table[None], True)
    return table.reshape(M, N)


@launcher
def few_rows_product_transposed(device: Device, x: Array, matrix: Any, out: Array) -> Array:
    """x (M, K) float32, matrix (N, K) -> x W.T (M, N), written into out."""
    if not is_taken(matrix, 1, x, out) or x.shape[1] != matrix.data.shape[1]:
        return NotImplemented
    (M, K), N = x.shape, matrix.data.shape[0]
    if out.shape != (M, N):
        return NotImplemented
    if M > FEW:
        out[...] = x @ unpacked(device, matrix, 1).T
        return out
    packed, most = PACKED[matrix.data.dtype.name]
    width = widest(device, matrix, 1, most, x)
    rows = AT_ONCE[0] if M == 1 else AT_ONCE[1]
    device.launch(
        "packed", f"few_rows_product_transposed<{packed}, {width}, {rows}>", "float",
        (ceil_div(N, ROWS), ceil_div(M, rows)), (WARP, ROWS),
        (x, matrix.data, matrix.scale, out, M, K, N, matrix.group or K), 0,
    )  # fmt: skip
    return out


@launcher
def unpack_into(device: Device, out: Array, matrix: Any, axis: int) -> Array:
    """Unpack a matrix (rows, columns) into out, float32. axis: the axis along which groups share a scale."""
    if not is_taken(matrix, axis, out) or out.shape != matrix.data.shape:
        return NotImplemented
    N, C = out.shape
    packed, _ = PACKED[matrix.data.dtype.name]
    width = widest(device, matrix, axis, 4, out)
    arguments = (matrix.data, matrix.scale, out, N, C, matrix.group or out.shape[axis], axis)
    blocks = ceil_div(N * (C // width), THREADS)
    device.launch("packed", f"unpack_rows<{packed}, {width}>", "float", (blocks,), (THREADS,), arguments, 0)
    return out
