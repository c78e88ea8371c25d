"""Attention with a key-value cache: new tokens attend to the tokens before them without recomputing those.

Attention is causal, so the keys and values of a token do not depend on the tokens after it. While it generates, a model
caches them, and the queries of the new tokens meet the keys of all tokens so far. Row b holds n = lengths[b] tokens.
Its T new tokens are at positions n .. n + T - 1, where their keys and values are stored. For the new token t, the sums
run over the positions j <= n + t:

    s_tj = scale * sum over c of q_tc k_jc
    p_tj = exp(s_tj) / sum over l of exp(s_tl)
    y_tc = sum over j of p_tj v_jc

This equals the last T rows of `attention.py` over the whole text; empty rows are computed by it. Rows may
differ in length. There is no padding, and whatever lies beyond the end of a row is never read.

Inference only: no gradient, no dropout.

No oracle: it has no gradient, and the tests compare it with `attention` on the whole text.

Letters: B texts, T new tokens of each, H heads, D = C / H. Shapes: qkv (B, T, 3C), keys and values (B, H, capacity, D).
Source: Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019, section 2.4.1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends import array_module
from ..tensor import Tensor
from ..typing import Array
from .attention import QKVAttention, attention_forward
from .softmax import softmax_forward


class KeyValueCache:
    """The keys and values of B texts in one block, (B, H, capacity, D) each.

    lengths: (B,) number of tokens of each text, on the host; `places`: the same on the device of the keys. The caller
    advances both after all blocks have read the new tokens. last_only: only the result of the last position is needed.
    A subclass may hold texts with different numbers of new tokens: see `generation/joint_prompts.py`.
    """

    def __init__(self, keys: Array, values: Array, lengths: Any, last_only: bool = False) -> None:
        self.keys, self.values, self.last_only = keys, values, last_only
        self.lengths = self.places = lengths

    def positions(self, T: int) -> np.ndarray:
        """Where the next T tokens of each text go, (B, T)."""
        return self.lengths[:, None] + np.arange(T)

    def last(self, x: Tensor) -> Tensor:
        """x (B, T, C), of the new tokens -> that of each text's last token, (B, 1, C)."""
        return x[:, -1:]

    def attend(self, qkv: Array, n_head: int, scale: float | None) -> Array:
        """`cached_attention` on arrays."""
        q, k, v = QKVAttention.heads(qkv, n_head)  # (B, H, T, D) each
        B, _, T, D = q.shape
        scale = 1.0 / math.sqrt(D) if scale is None else scale
        with np.errstate(all="ignore"):
            if self.lengths.any():
                y = _attend_to_all(q, k, v, self, scale)  # (B, T, H, D)
            else:
                self.keys[:, :, :T], self.values[:, :, :T] = k, v
                y = attention_forward(q, k, v, True, scale, 0.0, 0, 0)[0].transpose(0, 2, 1, 3)  # (B, T, H, D)
        y = y.reshape(B, T, n_head * D)
        return y[:, -1:] if self.last_only else y

    def row(self, b: int) -> KeyValueCache:
        """Text b alone, sharing memory."""
        part = slice(b, b + 1)
        return KeyValueCache(self.keys[part], self.values[part], self.lengths[part], self.last_only)

    def select(self, rows: np.ndarray) -> None:
        """Replace text r by text rows[r]; rows (R,) may repeat. In place unless R > B."""
        used = int(self.lengths.max(initial=0))
        self.keys, self.values = (self._selected(array, rows, used) for array in (self.keys, self.values))
        self.lengths = self.lengths[rows]

    @staticmethod
    def _selected(array: Array, rows: np.ndarray, used: int) -> Array:
        R, B = len(rows), len(array)
        if R > B:
            grown = array_module(array).zeros((R, *array.shape[1:]), array.dtype)
            grown[:, :, :used] = array[rows, :, :used]
            return grown
        moved = np.flatnonzero(rows != np.arange(R))
        if len(moved):
            array[moved, :, :used] = array[rows[moved], :, :used]  # the right side is a copy
        return array[:R]


def cached_attention(qkv: Tensor, n_head: int, cache: KeyValueCache, scale: float | None = None) -> Tensor:
    """qkv (B, T, 3C) of T new tokens of each text -> (B, T, C), or (B, 1, C) if `cache.last_only`.

    scale: 1 / sqrt(D) if None. Stores the new keys and values in the cache; the caller advances its `lengths`.
    """
    return Tensor(cache.attend(qkv.data, n_head, scale))


def _attend_to_all(q: Array, k: Array, v: Array, cache: KeyValueCache, scale: float) -> Array:
    """q, k, v (B, H, T, D) -> y (B, T, H, D), by the formula above."""
    xp = array_module(q)
    B, H, T, _ = q.shape
    place = xp.asarray(cache.lengths)[:, None] + xp.arange(T)  # (B, T)
    rows = xp.arange(B)[:, None]
    cache.keys[rows, :, place], cache.values[rows, :, place] = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    longest = int(cache.lengths.max()) + T
    scores = (q @ cache.keys[:, :, :longest].swapaxes(2, 3)) * scale  # (B, H, T, longest)
    absent = xp.arange(longest) > place[:, None, :, None]  # (B, 1, T, longest)
    p = softmax_forward(xp.where(absent, -math.inf, scores).reshape(-1, longest)).reshape(B, H, T, longest)
    return (p.astype(q.dtype) @ cache.values[:, :, :longest]).transpose(0, 2, 1, 3)
