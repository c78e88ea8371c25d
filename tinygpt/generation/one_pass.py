"""The fast path of `Decoder.step`: run one new token of each text through a whole GPT, on plain arrays.

It computes `GPT.hidden(ids, cache)` with one call per block (`tinygpt.ops.decode_block`). That call reads the weights
directly instead of calling the layers, so it works only for models made entirely of this package's layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import backends
from ..gpt import GPT, MLP, Attention, Block
from ..kernel import work_size
from ..nn import Embedding, LayerNorm, Linear
from ..nn.known import is_known, keeps
from ..nn.lora import without_lora
from ..nn.packed import PackedEmbedding, PackedLinear
from ..ops.cached_attention import KeyValueCache
from ..ops.decode_block import decode_block
from ..ops.layer_norm import layer_norm_forward
from ..ops.packed import rows_of


class OnePass:
    """The fast path for one model, with the weights it has now. Reuses the compiled kernel's workspace."""

    def __init__(self, model: GPT) -> None:
        self.model, self.blocks, norm = model, model.h, model.ln_f
        self.inner = max(block.mlp.inner for block in model.h)
        self.work: Any = None
        self.rows = 0  # for which `work` is large enough
        # Looking these up at every step would take a tenth of the time of a small model's step.
        self.wte, self.wpe = model.wte.matrix, model.wpe.weight.data
        self.norm = norm.weight.data, None if norm.bias is None else norm.bias.data, norm.eps

    def __call__(self, ids: np.ndarray, cache: Sequence[KeyValueCache]) -> Any:
        """ids (M,), the next token of each text -> (M, C), the input of the head."""
        places = cache[0].places
        there = ids if isinstance(places, np.ndarray) else backends.move(ids, "cupy")
        x = rows_of(self.wte, there) + self.wpe[places]  # (M, C)
        work = self._room(x)
        for block, layer in zip(self.blocks, cache, strict=True):
            decode_block(x, block, layer.keys, layer.values, places, work)
        return layer_norm_forward(x, *self.norm)[0]

    def _room(self, x: Any) -> Any:
        """Workspace for the compiled kernel."""
        if self.work is None or self.rows < len(x):
            self.rows = len(x)
            size = max(1, work_size("decode_work", x, *x.shape, self.inner))
            self.work = backends.array_module(x).empty(size, x.dtype)
        return self.work


def one_pass(model: Any) -> OnePass | None:
    """The fast path for `model`, or None if any part of it is user-defined.

    It merges an adapter's updates into the weights once, and reads the sums. Packed weights would have to be rounded
    again for that, so a model with packed weights and an adapter has no fast path.
    """
    if not isinstance(model, GPT) or not keeps(model, GPT):
        return None
    model = without_lora(model)
    return OnePass(model) if all(is_known(module, *kinds) for module, kinds in _places(model)) else None


def _places(model: GPT) -> Iterator[tuple[Any, tuple[type, ...]]]:
    """Each layer whose weights are read, and its allowed classes."""
    linear = (Linear, PackedLinear)
    yield from ((model.wte, (Embedding, PackedEmbedding)), (model.wpe, (Embedding,)), (model.ln_f, (LayerNorm,)))
    for block in model.h:
        yield block, (Block,)
        yield from ((block.attn, (Attention,)), (block.mlp, (MLP,)))
        yield from ((block.ln_1, (LayerNorm,)), (block.ln_2, (LayerNorm,)))
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            yield layer, linear
