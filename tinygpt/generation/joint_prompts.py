"""Several prompts, or pieces of prompts, through the model in one pass: its weights are read once for all of them.

    joint = joint_prompts(one_pass(model))  # None if the model has to be called
    hidden = joint([ids, ...], [cache, ...])

It computes `GPT.hidden(ids, cache)` of each prompt. Only attention sees other tokens, so everything else works on the
tokens of all prompts as the rows of one matrix, without padding; attention is computed for each prompt by itself.

With the compiled kernels no bit of a prompt's result depends on the others. That is a property of two products, whose
sums have an order of their own for any number of rows: that of few rows, which prompts of less than LONG tokens use
(`ops/packed.py`), and that of many (`_ext/cpu/matmul`). Which of them it is depends on the prompt alone, so the short
ones share passes, and so do the long ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..gpt import ACTIVATIONS, GPT
from ..graph import no_grad
from ..kernel import compiled_part
from ..nn.packed import with_bias
from ..nn.residual import ResidualStream
from ..ops.cached_attention import KeyValueCache, cached_attention
from ..ops.packed import few_rows_product
from ..tensor import Tensor
from .one_pass import OnePass

LONG = 32  # the fewest rows and columns that the product of many rows takes (FEWEST in product.pyx)
MOST_SHORT, MOST_LONG = 128, 512  # tokens in a pass: enough for the speed, and little memory

Cache = Sequence[KeyValueCache]


class JointPrompts:
    """The pass above for one model, with the weights that it has when it is called."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        ours = compiled_part("product_is_ours")
        self.many_rows = ours is not None and ours() and model.config.n_embd >= LONG

    def __call__(self, prompts: Sequence[np.ndarray], caches: Sequence[Cache]) -> list[Any]:
        """ids (T,) of each prompt, and the cache of its text, whose `lengths` the caller advances -> a list of (C,)."""
        hidden: list[Any] = [None] * len(prompts)
        short = [not self.many_rows or len(ids) < LONG for ids in prompts]
        for few in (True, False):
            mine = [i for i, is_short in enumerate(short) if is_short == few]
            for some in passes(mine, [len(ids) for ids in prompts], MOST_SHORT if few else MOST_LONG):
                found = self._one([prompts[i] for i in some], [caches[i] for i in some], few)
                for i, row in zip(some, found, strict=True):
                    hidden[i] = row
        return hidden

    def _one(self, prompts: list[np.ndarray], caches: list[Cache], few: bool) -> Any:
        """One pass -> (len(prompts), C)."""
        model, ends = self.model, np.cumsum([len(ids) for ids in prompts])
        places = [cache[0].lengths[0] + np.arange(len(ids)) for ids, cache in zip(prompts, caches, strict=True)]
        with no_grad(), model.evaluating(), model.compute_in("float32"):
            x = model.wte(np.concatenate(prompts)[None]) + model.wpe(np.concatenate(places)[None])  # (1, N, C)
            stream = ResidualStream(x)
            for i, block in enumerate(model.h):
                layers, last = [cache[i] for cache in caches], block is model.h[-1]
                attended = _attention(block.attn, stream.norm(block.ln_1), layers, ends, few)
                if last:  # from here on, only the last token of each prompt matters
                    stream.x, few = Tensor(stream.x.data[:, ends - 1]), True
                stream.pending = _product(block.attn.c_proj, attended, few), block.attn.c_proj.bias, block.dropout
                stream.pending = (*_mlp(block.mlp, stream.norm(block.ln_2), few), block.dropout)
            return stream.norm(model.ln_f).data[0]


def _attention(layer: Any, h: Tensor, caches: list[KeyValueCache], ends: np.ndarray, few: bool) -> Tensor:
    """h (1, N, C) of all tokens -> what the heads read, (1, N, C); after the last block (1, len(caches), C)."""
    qkv = with_bias(_product(layer.c_attn, h, few), layer.c_attn.bias).data  # (1, N, 3C)
    parts = zip([0, *ends], ends, caches, strict=False)
    read = [cached_attention(Tensor(qkv[:, a:b]), layer.n_head, cache, layer.scale).data for a, b, cache in parts]
    return Tensor(np.concatenate(read, axis=1))


def _mlp(layer: Any, h: Tensor, few: bool) -> tuple[Tensor, Tensor | None]:
    """`MLP.branch`."""
    z, bias = _product(layer.c_fc, h, few), layer.c_fc.bias
    if bias is not None and layer.activation == "gelu_new":
        y = ops.bias_gelu(z, bias)
    else:
        y = ACTIVATIONS[layer.activation](with_bias(z, bias))
    return _product(layer.c_proj, y, few), layer.c_proj.bias


def _product(layer: Any, x: Tensor, few: bool) -> Tensor:
    """x (1, N, in) -> x W (1, N, out)."""
    if not few:
        product: Tensor = layer.product(x)
        return product
    return Tensor(few_rows_product(np.ascontiguousarray(x.data[0]), layer.matrix)[None])


def passes(which: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cut `which` into runs of at most `most` tokens, or of a single one that has more."""
    run, total = list[int](), 0
    for i in which:
        if run and total + lengths[i] > most:
            yield run
            run, total = [], 0
        run.append(i)
        total += lengths[i]
    if run:
        yield run


def joint_prompts(one_pass: OnePass | None) -> JointPrompts | None:
    """The pass for a model, given its fast path for decoding, whose sums of an adapter's updates and their weights it
    reads too; None if a part of the model is user-defined, and on a GPU."""
    if one_pass is None or not isinstance(one_pass.wpe, np.ndarray):
        return None
    return JointPrompts(one_pass.model)
