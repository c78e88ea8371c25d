"""A block of the model from given arrays, packed or not: what `decode_block` is tested with."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygpt import GPTConfig, nn
from tinygpt.gpt import Block
from tinygpt.nn.packed import PackedLinear
from tinygpt.ops.packed import Matrix
from tinygpt.random import Generator

# In the order in which a block uses them. An array of None is a bias that is not there: either all are, or none.
PARAMETERS = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
    "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def block_of(
    arrays: dict[str, Any], n_head: int, eps: float, activation: str = "gelu_new", scale: float | None = None
) -> Block:
    """arrays: by the names in PARAMETERS; weights of linear layers may be a Matrix. scale: None is 1 / sqrt(D)."""
    C, bias = len(arrays["ln_1.weight"]), arrays["ln_1.bias"] is not None
    inner = shape_of(arrays["mlp.c_fc.weight"])[1]
    config = GPTConfig(1, 1, 1, n_head, C, 0.5, bias, eps, activation_function=activation, n_inner=inner)
    with nn.uninitialized():
        block = Block(config, 0, Generator(0), np.float32)
    block.attn.scale = scale
    for name, array in arrays.items():
        put(block, name, array)
    return block


def shape_of(array: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = array.weight_shape() if isinstance(array, Matrix) else array.shape
    return shape


def put(block: Block, name: str, array: Any) -> None:
    """Put an array, or a Matrix, in the place of a parameter."""
    *path, last = name.split(".")
    owner: Any = block
    for part in path[:-1]:
        owner = getattr(owner, part)
    layer = getattr(owner, path[-1])
    if isinstance(array, Matrix) and array.format in ("bfloat16", "int8", "int4"):
        packed = PackedLinear.__new__(PackedLinear)
        packed.matrix, packed.bias = array, layer.bias
        setattr(owner, path[-1], packed)
    elif array is not None:
        getattr(layer, last).data = array.data if isinstance(array, Matrix) else array


def array_at(block: Block, name: str) -> Any:
    """What `put` put there."""
    layer: Any = block
    *path, last = name.split(".")
    for part in path:
        layer = getattr(layer, part)
    if last == "weight" and isinstance(layer, PackedLinear):
        return layer.matrix
    parameter = getattr(layer, last)
    return None if parameter is None else parameter.data
