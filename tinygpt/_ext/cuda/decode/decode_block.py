"""One new token through one block of the model, on a GPU: decode_block.cu, existing kernels, and matrix products.

There is no single kernel for the whole block. Its four matrix products account for nearly all of the memory traffic,
and both the matrix library (unpacked weights) and packed.cu (packed ones) already run at memory bandwidth; a single
kernel would need a grid-wide barrier between the products. Only the attention over the cache has its own kernel,
decode_block.cu; the norms, the activation and the additions reuse the other kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....typing import Array
from .. import (
    FOR_REDUCTIONS,
    MAX_BLOCKS,
    MAX_SHARED,
    REALS,
    SIZES,
    Device,
    accumulator_dtype,
    ceil_div,
    launcher,
    real_of,
)
from ..gelu import bias_gelu_forward, gelu_erf_forward, gelu_forward
from ..layer_norm import layer_norm_forward
from ..linear import add_bias
from ..residual_layer_norm import residual_layer_norm_forward
from ..silu import silu_forward
from .packed import PACKED, few_rows_product, is_taken

PIECE, THREADS, OWN = 128, 256, 4  # as in decode_block.cu
HEADS = (32, 64, 128)


def expressions(real: str) -> list[str]:
    """The instances of the kernels for arrays of `real`."""
    widths = (1, min(OWN, 16 // SIZES[real]))
    return [f"join_pieces<{real}>"] + [f"attend_to_cache<{real}, {w}, {head}>" for head in HEADS for w in widths]


def attend(
    device: Device, qkv: Array, bias: Array | None, keys: Array, values: Array, length: Any, scale: float | None = None
) -> Array:
    """qkv (M, 3C), bias (3C,) or None -> y (M, C); appends each row's new token to the cache."""
    M, H, capacity, D = keys.shape
    real, pieces = real_of(qkv), ceil_div(capacity, PIECE)
    head = next(size for size in HEADS if size >= D)
    width = min(OWN, 16 // SIZES[real])
    scale = 1 / math.sqrt(D) if scale is None else scale
    arrays = [array for array in (qkv, bias, keys, values) if array is not None]
    if D % width or any(device.address(array) % 16 for array in arrays):
        width = 1
    table = device.empty((M * H, pieces, D + 2), accumulator_dtype(qkv))
    y = device.empty((M, H * D), qkv.dtype)
    device.launch(
        "decode_block", f"attend_to_cache<{real}, {width}, {head}>", real, (M * H, pieces), (THREADS,),
        (qkv, bias, keys, values, length, table, H, D, capacity, scale), 0,
    )  # fmt: skip
    arguments = (table, length, y, H, D, capacity, pieces)
    device.launch("decode_block", f"join_pieces<{real}>", real, (M * H,), (head,), arguments, 0)
    return y


def product(device: Device, x: Array, layer: Any) -> Array:
    """x (M, K) times the matrix (K, N), packed or not, of a Linear -> (M, N)."""
    matrix = layer.matrix
    return few_rows_product(device, x, matrix) if matrix.data.dtype.name in PACKED else device.matmul(x, matrix.data)


def array(parameter: Any) -> Array | None:
    """The array of a parameter, or None if there is no such bias."""
    return None if parameter is None else parameter.data


def activate(device: Device, z: Array, bias: Array | None, name: str) -> Array:
    """activation(z + bias); z (M, N), bias (N,) or None."""
    if name == "gelu_new":
        return gelu_forward(device, z) if bias is None else bias_gelu_forward(device, z, bias)
    z = z if bias is None else add_bias(device, z, bias)
    if name == "gelu":
        return gelu_erf_forward(device, z)
    return silu_forward(device, z) if name == "silu" else device.xp.maximum(z, 0)


def fits(x: Array, block: Any, keys: Array, values: Array, length: Any) -> bool:
    """Whether the kernels support these shapes, dtypes and layouts."""
    M, C = x.shape
    if x.dtype.name not in REALS or keys.ndim != 4 or keys.shape != values.shape or length.shape != (M,):
        return False
    if keys.shape[0] != M or keys.shape[1] * keys.shape[3] != C or keys.shape[3] > HEADS[-1]:
        return False
    if C * x.dtype.itemsize > MAX_SHARED - FOR_REDUCTIONS or ceil_div(keys.shape[2], PIECE) > MAX_BLOCKS:
        return False
    attn, mlp, inner = block.attn, block.mlp, block.mlp.c_fc.matrix.data.shape[-1]
    if attn.n_head != keys.shape[1] or mlp.activation not in ("gelu_new", "gelu", "relu", "silu"):
        return False
    layers = ((attn.c_attn, C, 3 * C), (attn.c_proj, C, C), (mlp.c_fc, C, inner), (mlp.c_proj, inner, C))
    vectors = [(norm.weight.data, C) for norm in (block.ln_1, block.ln_2)]
    vectors += [(array(norm.bias), C) for norm in (block.ln_1, block.ln_2)]
    vectors += [(array(layer.bias), columns) for layer, _, columns in layers]
    for v, size in vectors:
        if v is not None and (v.shape != (size,) or v.dtype != x.dtype or not v.flags.c_contiguous):
            return False
    for layer, rows, columns in layers:
        matrix = layer.matrix
        if matrix.data.shape != (rows, columns):
            return False
        if matrix.data.dtype != x.dtype and not (x.dtype == np.float32 and is_taken(matrix, 0)):
            return False
    return True


@launcher
def decode_block(device: Device, x: Array, block: Any, keys: Array, values: Array, length: Any, work: Array) -> Any:
    """x (M, C), keys and values (M, H, capacity, D), updated in place; length (M,); see the reference."""
    if not fits(x, block, keys, values, length):
        return NotImplemented
    attn, mlp, ln_1, ln_2 = block.attn, block.mlp, block.ln_1, block.ln_2
    h, _, _ = layer_norm_forward(device, x, ln_1.weight.data, array(ln_1.bias), ln_1.eps)
    qkv = product(device, h, attn.c_attn)
    y = attend(device, qkv, array(attn.c_attn.bias), keys, values, length, attn.scale)
    total, h, _, _ = residual_layer_norm_forward(
        device, x, product(device, y, attn.c_proj), array(attn.c_proj.bias), ln_2.weight.data, array(ln_2.bias),
        ln_2.eps, 0.0, 0, 0,
    )  # fmt: skip
    h = activate(device, product(device, h, mlp.c_fc), array(mlp.c_fc.bias), mlp.activation)
    if mlp.c_proj.bias is not None:
        total = add_bias(device, total, mlp.c_proj.bias.data)
    device.xp.add(total, product(device, h, mlp.c_proj), out=x)
    return None
