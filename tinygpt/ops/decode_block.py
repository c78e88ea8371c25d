"""One new token through one block of the model, for M texts at once: what a model does while it writes.

    h = layer_norm(x, ln_1);   q, k, v = split(h W_attn + b)
    the cache takes k and v as those of the newest token;   s_t = q . k_t / sqrt(D) over all tokens t of the row
    x = x + (softmax(s) v) W_attn_proj + b
    h = layer_norm(x, ln_2);   x = x + gelu(h W_fc + b) W_proj + b

It is the same as a block of `tinygpt.gpt` applied to the whole text, at its last position: the keys and values of
earlier positions do not depend on later ones (attention is causal), so they are kept instead of being computed again.
That is the whole of a key-value cache.

Inference only: there is no gradient, so this is a kernel without a Function. What it costs is reading the weights; the
compiled body reads them once for all M rows, in whichever format of `tinygpt.ops.packed` they are, and row m of its
result has the same bits whatever the other rows are.

The rows differ in how many tokens they hold: `length[m]` before this one. There is no padding inside the cache.

Letters: M rows, C channels, H heads, D = C / H. Shapes: x (M, C), keys and values (M, H, capacity, D), length (M,).
Source: Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019, section 2.4.1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..backends import array_module
from ..kernel import kernel
from .gelu import gelu_forward
from .layer_norm import layer_norm_forward
from .packed import Matrix, few_rows_product
from .softmax import softmax_forward


class BlockWeights(NamedTuple):
    """The weights of one block as plain arrays; biases may be None."""

    ln_1: Any
    ln_1_bias: Any
    attn: Matrix  # (C, 3C)
    attn_bias: Any
    attn_proj: Matrix  # (C, C)
    attn_proj_bias: Any
    ln_2: Any
    ln_2_bias: Any
    fc: Matrix  # (C, 4C)
    fc_bias: Any
    proj: Matrix  # (4C, C)
    proj_bias: Any
    eps: float


def _linear(x: Any, matrix: Matrix, bias: Any) -> Any:
    y = few_rows_product(x, matrix)
    return y if bias is None else y + bias


@kernel(in_place=True)
def decode_block(x: Any, block: BlockWeights, keys: Any, values: Any, length: Any, work: Any) -> None:
    """x (M, C) becomes the block's result, and the cache takes one more token of each row, at length[m]: all in place.

    work: room for the compiled body, `decode_work(M, C)` floats; unused here.
    """
    xp = array_module(x)
    M, C = x.shape
    H, D = keys.shape[1], keys.shape[3]
    rows = xp.arange(M)
    h, _, _ = layer_norm_forward(x, block.ln_1, block.ln_1_bias, block.eps)  # (M, C)
    qkv = _linear(h, block.attn, block.attn_bias).reshape(M, 3, H, D)
    q, keys[rows, :, length], values[rows, :, length] = qkv[:, 0], qkv[:, 1], qkv[:, 2]  # (M, H, D) each
    longest = int(length.max()) + 1
    scores = (keys[:, :, :longest] @ q[..., None])[..., 0] / math.sqrt(D)  # (M, H, longest)
    absent = xp.arange(longest) > length[:, None, None]  # (M, 1, longest)
    weights = softmax_forward(xp.where(absent, -math.inf, scores).reshape(M * H, longest)).reshape(M, H, 1, longest)
    y = (weights.astype(x.dtype) @ values[:, :, :longest]).reshape(M, C)
    x += _linear(y, block.attn_proj, block.attn_proj_bias)
    h, _, _ = layer_norm_forward(x, block.ln_2, block.ln_2_bias, block.eps)  # (M, C)
    x += _linear(gelu_forward(_linear(h, block.fc, block.fc_bias)), block.proj, block.proj_bias)
