"""The model at work: texts that grow token by token, with the keys and values of their earlier tokens kept.

    decoder = Decoder(model, capacity=200)          # capacity: the most tokens that a row may come to hold
    logits = decoder.prefill(prompts)               # B arrays of ids, of any lengths -> (B, V)
    logits = decoder.step(ids)                      # the next token of each row, (B,) -> (B, V)
    decoder.select([0, 0, 1])                       # rows copied, reordered, dropped: for beams, for several samples

`prefill` runs the model over each prompt by itself and keeps what its attention layers computed; `step` costs one token
(`tinygpt.ops.decode_block`). With the compiled kernels, in float32, row b of the results has the same bits whatever the
other rows are; with the reference bodies the same but for rounding. There is no padding: a row is its tokens
0 .. lengths[b] - 1.

Positions are learned, one for each place up to block_size, so nothing can be kept of a window that slides: a full row
is an error here, and whoever wants to go on starts anew with the end of the text.

That is for a plain GPT-2 (`tinygpt.plain_gpt`). Where somebody has changed a layer, `decoder_for` takes a decoder of
the same interface that calls the model instead (`stepper`).

Memory: 2 n_layer n_embd numbers for each row and each token of the capacity, so ask for what the texts need.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..checks import integer_array, whole_number
from ..errors import RangeError, ShapeError, UsageError
from ..graph import no_grad
from ..kernel import work_size
from ..ops.decode_block import BlockWeights, decode_block
from ..ops.layer_norm import layer_norm_forward
from ..ops.packed import few_rows_product_transposed, rows_of
from ..plain_gpt import difference_from_gpt2

if TYPE_CHECKING:
    from ..gpt import GPT, Block


class Decoder:
    """B texts under one model. The model's weights are shared, not copied: a later change of them is seen.

    Only for models that `difference_from_gpt2` finds nothing in: a layer that somebody has changed would be passed over
    by `step`. Raises UsageError with the name of what it is; `decoder_for` takes another decoder there.
    """

    def __init__(self, model: GPT, capacity: int | None = None) -> None:
        difference = difference_from_gpt2(model)
        if difference is not None:
            raise UsageError(f"Decoder: {difference}, and this decoder knows a plain GPT-2 alone: take decoder_for")
        self.model, self.capacity = model, checked_capacity(model, capacity)
        self.lengths = np.zeros(0, np.int64)  # (B,) tokens that each row holds
        self._take_weights()
        self._make_room(0)

    def _take_weights(self) -> None:
        model = self.model
        self.xp = backends.array_module(model.wpe.weight.data)
        self.dtype = model.wpe.weight.data.dtype
        self.blocks = [block_weights(block) for block in model.h]
        self.wte, self.wpe = model.wte.matrix, model.wpe.weight.data

    def _make_room(self, B: int) -> None:
        """Empty caches and working memory for B rows."""
        config, C = self.model.config, self.model.config.n_embd
        shape = (B, config.n_head, self.capacity, C // config.n_head)
        self.keys = [self.xp.zeros(shape, self.dtype) for _ in self.blocks]  # each (B, H, capacity, D)
        self.values = [self.xp.zeros(shape, self.dtype) for _ in self.blocks]
        self._make_work(B)

    def _make_work(self, B: int) -> None:
        config = self.model.config
        size = work_size("decode_work", self.wpe, B, config.n_embd)
        self.work = self.xp.empty(max(1, size), self.dtype)
        self.logits = self.xp.empty((B, config.vocab_size), self.dtype)

    def prefill(self, prompts: Sequence[Any]) -> Any:
        """Begin anew with `prompts`, B arrays of ids (T_b,), T_b at least 1 and at most the capacity -> logits (B, V).

        Raises ShapeError, DtypeError, RangeError before anything changes.
        """
        rows = [self.model.check_ids([prompt]) for prompt in prompts]  # (1, T_b) each
        lengths = np.array([row.shape[1] for row in rows], np.int64)
        if len(rows) and lengths.max() > self.capacity:
            raise ShapeError(
                f"Decoder.prefill: a prompt of {lengths.max()} tokens is longer than the capacity, {self.capacity}"
            )
        self.lengths = np.zeros(0, np.int64)  # no rows, should this be broken off
        self._take_weights()
        self._make_room(len(rows))
        last = self.xp.empty((len(rows), self.model.config.n_embd), self.dtype)  # (B, C)
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            for b, row in enumerate(rows):
                hidden = self.model.hidden(row, keep=partial(self._keep, b), last=True)
                last[b] = hidden.data[0, 0]
        self.lengths = lengths
        return self._head(last)

    def _keep(self, b: int, i: int, qkv: Any) -> None:
        """Put the keys and values of row b in block i, in qkv (1, T, 3C), into the cache."""
        T = qkv.shape[1]
        _, H, _, D = self.keys[i].shape
        heads = qkv.reshape(T, 3, H, D).transpose(1, 2, 0, 3)  # (3, H, T, D)
        self.keys[i][b, :, :T], self.values[i][b, :, :T] = heads[1], heads[2]

    def step(self, ids: Any) -> Any:
        """The next token of each row, (B,) integers -> logits (B, V) of the token after it.

        The array is overwritten by the next step. Raises UsageError when a row is full, ShapeError, RangeError.
        """
        ids = integers("Decoder.step: ids", ids)
        if len(ids) != len(self.lengths):
            raise ShapeError(f"Decoder.step: ids must be {len(self.lengths)}, one for each row, not {len(ids)}")
        if len(ids) == 0:
            return self.logits
        if ids.min() < 0 or ids.max() >= self.model.config.vocab_size:
            raise RangeError(
                f"Decoder.step: ids must be in 0 .. {self.model.config.vocab_size - 1}, not {ids.min()} .. {ids.max()}"
            )
        if self.lengths.max() >= self.capacity:
            raise UsageError(f"Decoder.step: row {self.lengths.argmax()} is full: it holds {self.capacity} tokens")
        lengths = self.lengths if self.xp is np else self.xp.asarray(self.lengths)
        x = rows_of(self.wte, self.xp.asarray(ids)) + self.wpe[lengths]  # (B, C)
        for block, keys, values in zip(self.blocks, self.keys, self.values, strict=True):
            decode_block(x, block, keys, values, lengths, self.work)
        self.lengths = self.lengths + 1
        return self._head(layer_norm_forward(x, *self._last_norm())[0])

    def _last_norm(self) -> tuple[Any, Any, float]:
        norm = self.model.ln_f
        return norm.weight.data, None if norm.bias is None else norm.bias.data, norm.eps

    def _head(self, h: Any) -> Any:
        """h (B, C) after the last LayerNorm -> logits (B, V)."""
        return few_rows_product_transposed(h, self.wte, self.logits) if len(h) else self.logits

    def select(self, rows: Any) -> None:
        """Row r becomes what row rows[r] was; rows: (R,) integers below B, any number of times each.

        Raises ShapeError, RangeError before anything changes.
        """
        rows = integers("Decoder.select: rows", rows)
        B, R = len(self.lengths), len(rows)
        if R and (rows.min() < 0 or rows.max() >= B):
            raise RangeError(f"Decoder.select: rows must be in 0 .. {B - 1}, not {rows.min()} .. {rows.max()}")
        used = int(self.lengths.max()) if B else 0
        self.keys = [self._selected(cache, rows, used) for cache in self.keys]
        self.values = [self._selected(cache, rows, used) for cache in self.values]
        self.lengths = self.lengths[rows]
        if R != B:
            self._make_work(R)

    def _selected(self, cache: Any, rows: np.ndarray, used: int) -> Any:
        """The rows of a cache (B, H, capacity, D), of which the first `used` tokens matter; in place if they fit."""
        R, B = len(rows), len(cache)
        if R > B:
            grown = self.xp.zeros((R, *cache.shape[1:]), cache.dtype)
            grown[:, :, :used] = cache[rows, :, :used]
            return grown
        moved = np.flatnonzero(rows != np.arange(R))
        if len(moved):
            cache[moved, :, :used] = cache[rows[moved], :, :used]  # the right side is a copy
        return cache[:R]


def checked_capacity(model: GPT, capacity: int | None) -> int:
    block = model.config.block_size
    capacity = block if capacity is None else whole_number("Decoder", "capacity", capacity)
    if capacity > block:
        raise UsageError(f"Decoder: capacity must be at most the model's block_size, {block}, not {capacity}")
    return capacity


def integers(what: str, values: Any) -> np.ndarray:
    """A list or an array (N,) of integers as an array of NumPy, or a sentence."""
    return backends.move(integer_array(what, values, flat=True), "numpy")


def block_weights(block: Block) -> BlockWeights:
    """The arrays of a block of the model, shared with it."""

    def data(parameter: Any) -> Any:
        return None if parameter is None else parameter.data

    attn, mlp = block.attn, block.mlp
    return BlockWeights(
        ln_1=block.ln_1.weight.data, ln_1_bias=data(block.ln_1.bias),
        attn=attn.c_attn.matrix, attn_bias=data(attn.c_attn.bias),
        attn_proj=attn.c_proj.matrix, attn_proj_bias=data(attn.c_proj.bias),
        ln_2=block.ln_2.weight.data, ln_2_bias=data(block.ln_2.bias),
        fc=mlp.c_fc.matrix, fc_bias=data(mlp.c_fc.bias),
        proj=mlp.c_proj.matrix, proj_bias=data(mlp.c_proj.bias),
        eps=block.ln_1.eps,
    )  # fmt: skip
