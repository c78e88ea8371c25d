"""One new token through one block of the model, on a GPU: decode_block.cu, existing kernels, and matrix products.

There is no single kernel for the whole block. Its four matrix products account for nearly all of the memory traffic,
and both the matrix library (unpacked weights) and packed.cu (packed ones) already run at memory bandwidth; a single
kernel would need a grid-wide barrier between the products. Only the attention over the cache has a kernel of its own,
decode_block.cu; the norms, the activation and the additions reuse the other kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import MOST_BLOCKS, MOST_SHARED, REALS, SIZES, Device, accumulator_dtype, ceil_div, launcher, real_of
from .gelu import bias_gelu_forward, gelu_forward
from .layer_norm import layer_norm_forward
from .linear import add_bias
from .packed import PACKED, few_rows_product, is_taken
from .residual_layer_norm import FOR_REDUCTIONS, residual_layer_norm_forward

PIECE, THREADS, OWN = 128, 256, 4  # as in decode_block.cu
HEADS = (32, 64, 128)


def expressions(real: str) -> list[str]:
    """The instances of the kernels for arrays of `real`."""
    widths = (1, min(OWN, 16 // SIZES[real]))
    return [f"join_pieces<{real}>"] + [f"attend_to_cache<{real}, {w}, {head}>" for head in HEADS for w in widths]


def attend(device: Device, qkv: Any, bias: Any, keys: Any, values: Any, length: Any) -> Any:
    """qkv (M, 3C), bias (3C,) or None -> y (M, C); appends each row's new token to the cache."""
    M, H, capacity, D = keys.shape
    real, pieces = real_of(qkv), ceil_div(capacity, PIECE)
    head = next(size for size in HEADS if size >= D)
    width = min(OWN, 16 // SIZES[real])
    arrays = [array for array in (qkv, bias, keys, values) if array is not None]
    if D % width or any(device.address(array) % 16 for array in arrays):
        width = 1
    table = device.empty((M * H, pieces, D + 2), accumulator_dtype(qkv))
    y = device.empty((M, H * D), qkv.dtype)
    device.launch(
        "decode_block", f"attend_to_cache<{real}, {width}, {head}>", real, (M * H, pieces), (THREADS,),
        (qkv, bias, keys, values, length, table, H, D, capacity, 1 / math.sqrt(D)), 0,
    )  # fmt: skip
    arguments = (table, length, y, H, D, capacity, pieces)
    device.launch("decode_block", f"join_pieces<{real}>", real, (M * H,), (head,), arguments, 0)
    return y


def product(device: Device, x: Any, matrix: Any) -> Any:
    """x (M, K), matrix (K, N), packed or not -> (M, N)."""
    return few_rows_product(device, x, matrix) if matrix.data.dtype.name in PACKED else x @ matrix.data


def fits(x: Any, block: Any, keys: Any, values: Any, length: Any) -> bool:
    """Whether the kernels support these shapes, dtypes and layouts."""
    M, C = x.shape
    if x.dtype.name not in REALS or keys.ndim != 4 or keys.shape != values.shape or length.shape != (M,):
        return False
    if keys.shape[0] != M or keys.shape[1] * keys.shape[3] != C or keys.shape[3] > HEADS[-1]:
        return False
    if C * x.dtype.itemsize > MOST_SHARED - FOR_REDUCTIONS or ceil_div(keys.shape[2], PIECE) > MOST_BLOCKS:
        return False
    vectors = {
        C: (block.ln_1, block.ln_1_bias, block.ln_2, block.ln_2_bias, block.attn_proj_bias, block.proj_bias),
        3 * C: (block.attn_bias,),
        4 * C: (block.fc_bias,),
    }
    for size, arrays in vectors.items():
        for v in arrays:
            if v is not None and (v.shape != (size,) or v.dtype != x.dtype or not v.flags.c_contiguous):
                return False
    shapes = {"attn": (C, 3 * C), "attn_proj": (C, C), "fc": (C, 4 * C), "proj": (4 * C, C)}
    for name, shape in shapes.items():
        matrix = getattr(block, name)
        if matrix.data.shape != shape:
            return False
        if matrix.data.dtype != x.dtype and not (x.dtype == np.float32 and is_taken(matrix, 0)):
            return False
    return True


@launcher
def decode_block(device: Device, x: Any, block: Any, keys: Any, values: Any, length: Any, work: Any) -> Any:
    """x (M, C), keys and values (M, H, capacity, D), updated in place; length (M,); see the reference."""
    if not fits(x, block, keys, values, length):
        return NotImplemented
    h, _, _ = layer_norm_forward(device, x, block.ln_1, block.ln_1_bias, block.eps)
    y = attend(device, product(device, h, block.attn), block.attn_bias, keys, values, length)
    total, h, _, _ = residual_layer_norm_forward(
        device, x, product(device, y, block.attn_proj), block.attn_proj_bias, block.ln_2, block.ln_2_bias, block.eps,
        0.0, 0, 0,
    )  # fmt: skip
    h = product(device, h, block.fc)
    h = gelu_forward(device, h) if block.fc_bias is None else bias_gelu_forward(device, h, block.fc_bias)
    if block.proj_bias is not None:
        total = add_bias(device, total, block.proj_bias)
    device.xp.add(total, product(device, h, block.proj), out=x)
    return None
