"""Attention maps: the probabilities with which each head mixes the values of earlier tokens.

For one head, with queries q and keys k (T, D), p_ij = softmax over j <= i of scale * q_i . k_j: row i shows where token
i attends. The engine never stores this (T, T) matrix (`tinygpt/ops/attention.py`), so it is computed here from the
queries and keys in the model. Attention alone explains little: the value vectors may be small where the probability is
large (Kobayashi et al., "Attention is Not Only a Weight", 2020).

Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1. The same as transformers' `output_attentions`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends import array_module
from ..backends.precision import upcast
from ..errors import ShapeError, UsageError
from ..gpt import Attention
from ..graph import no_grad
from ..ops.attention import QKVAttention, scores
from ..ops.softmax import softmax_forward
from ..tensor import Tensor
from ..typing import Array, Ids
from .hooks import Hook, hooked
from .text import AnyModel, body_of, host, one_text


def attention_maps(model: AnyModel, ids: Ids) -> np.ndarray:
    """ids (T,) -> (L, H, T, T): in block l, head h, how much token i takes from token j. Rows add up to 1; j > i is 0.

    Needs L H T**2 numbers of memory: 600 MB for GPT-2 at 1,024 tokens.
    A user-defined attention layer is supported if it has a method `attention_weights(h)`, (B, T, C) -> (B, H, T, T).
    Raises UsageError for one without; ShapeError, DtypeError, RangeError for wrong ids.
    """
    idx = one_text("attention_maps", model, ids)
    body, prefix = body_of("attention_maps", model)
    maps: dict[int, np.ndarray] = {}
    hooks = dict(_hook(block, f"{prefix}h.{i}", i, maps) for i, block in enumerate(body.h))
    with no_grad(), model.evaluating(), hooked(model, hooks):
        model(idx)
    for i, place in enumerate(hooks):
        if i not in maps:
            raise UsageError(f"attention_maps: {place} was not called when the model read the text")
    shapes = {found.shape for found in maps.values()}
    if len(shapes) != 1:
        raise ShapeError(f"attention_maps: the layers' maps differ in shape: {', '.join(map(str, sorted(shapes)))}")
    return np.stack([maps[i] for i in range(len(body.h))])


def _hook(block: Any, path: str, i: int, maps: dict[int, np.ndarray]) -> tuple[str, Hook]:
    """Where to look in one block, and the hook that puts its map (H, T, T) into maps[i]."""
    attention: Any = getattr(block, "attn", None)

    def from_qkv(qkv: Tensor) -> None:
        maps[i] = host(probabilities(qkv.data, attention.n_head, attention.scale)[0])

    def from_input(h: Tensor) -> None:
        weights = attention.attention_weights(h)
        maps[i] = host((weights.data if isinstance(weights, Tensor) else weights)[0])

    if hasattr(attention, "attention_weights"):
        return f"{path}.attn.input", from_input
    if not _computes_as_ours(attention):
        what = f"its attn is a {type(attention).__name__}" if attention is not None else "it has no attn"
        raise UsageError(
            f"attention_maps: {path} is not of tinygpt's own layers ({what}): give its attention a method "
            "attention_weights(h), (B, T, C) -> (B, H, T, T)"
        )
    return f"{path}.attn.c_attn", from_qkv


def _computes_as_ours(attention: Any) -> bool:
    """Whether its class computes as `Attention` does. A hook on the object doesn't matter: c_attn is still called."""
    methods = ("__call__", "forward", "branch")
    return all(getattr(type(attention), name, None) is getattr(Attention, name) for name in methods)


def probabilities(qkv: Array, n_head: int, scale: float | None) -> Array:
    """qkv (B, T, 3C) -> (B, H, T, T), in at least float32. scale: None means 1 / sqrt(D)."""
    q, k, _ = QKVAttention.heads(upcast(qkv), n_head)  # (B, H, T, D)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    B, H, T, _ = q.shape
    s = scores(q, k, True, scale)  # (B, H, T, T)
    p: Array = softmax_forward(array_module(s).ascontiguousarray(s).reshape(B * H * T, T)).reshape(B, H, T, T)
    return p
