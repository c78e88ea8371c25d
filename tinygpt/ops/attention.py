"""Scaled dot-product attention, without saving the (T, T) matrix for the backward pass.

For one head, with queries q (Tq, D), keys k and values v (Tk, D); i counts queries, j and l count keys, c channels:

    s_ij  = scale * sum over c of q_ic k_jc
    lse_i = log(sum over j of exp(s_ij))
    p_ij  = exp(s_ij - lse_i)
    a_ij  = p_ij * keep_ij / (1 - dropout_p)
    y_ic  = sum over j of a_ij v_jc

If causal, s_ij is -infinity where j > i. Row i of p is the softmax of row i of s. keep is the mask of dropout.py;
without dropout, a = p.

Derivation of the gradient. We go backwards through the five lines. y = a v is a matrix product, and keep multiplies
element by element:

    dv = a.T dy          da = dy v.T          dp = da * keep / (1 - dropout_p)

Softmax: d p_ij / d s_il = p_ij ([j = l] - p_il), so ds_ij = p_ij * (dp_ij - sum over l of dp_il p_il). It looks as if
this sum needed a whole row of p, but it does not: dp_il p_il = da_il a_il, the factor of keep going from one to the
other, and so

    delta_i = sum over l of da_il a_il = sum over l, c of dy_ic v_lc a_il = sum over c of dy_ic y_ic

    ds = p * (dp - delta)          dq = scale * ds k          dk = scale * ds.T q

Saved: q, k, v, y, lse (and the key of the mask). That is enough: p is recomputed from q, k and lse with one product and
one exp, keep from its key, and delta from dy and y. This takes O(T) memory per head, where p would take O(T**2). lse is
stored as near + rest (_two_parts.py), so that the probabilities of a row add up to 1 however large its scores are.
exp(-rest) is a single factor for each row; since dv, da and delta are linear in dy, the compiled bodies multiply dy by
it instead of p. They work on tiles of (i, j) and never hold a (T, T) matrix; the reference below does hold one while it
runs, but does not save it.

If causal, query i sees the keys 0 .. i, aligned at the top left even when Tq and Tk differ, as in PyTorch's is_causal.

Shapes: q (B, H, Tq, D); k, v (B, H, Tk, D); y (B, H, Tq, D), laid out in memory as (B, Tq, H, D), so that merging the
heads is a view; lse (B, H, Tq, 2); delta (B, H, Tq). All may be strided views. The mask comes from words(seed, stream,
B * H * Tq, Tk), counted from another first row if this is a part of a larger batch (`Generator.rows_before`).
Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1; the recomputing backward pass: Dao, Fu, Ermon,
Rudra, Ré, "FlashAttention", 2022, section 3.1 and appendix B.2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends import array_module
from ..errors import DtypeError, RangeError, ShapeError
from ..function import Function
from ..kernel import kernel
from ..random import Generator
from ..tensor import Tensor
from ..typing import Array, Shape
from ._arguments import mask_key, require_probability, require_same_dtype
from ._shapes import require_floating
from ._two_parts import two_parts
from .dropout import dropout_mask


def attention_composed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
) -> Tensor:
    """The oracle: the five lines above in primitive differentiable operations."""
    xp = array_module(q.data)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    s = scale * (q @ k.transpose(0, 1, 3, 2))  # (B, H, Tq, Tk)
    if is_causal:
        allowed = xp.tri(*s.shape[2:], dtype=bool)  # (Tq, Tk)
        s = s + Tensor(xp.where(allowed, 0.0, -math.inf).astype(q.dtype))
    e = (s - Tensor(s.data.max(axis=-1, keepdims=True))).exp()  # (B, H, Tq, Tk) the shift does not change softmax
    p = e / e.sum(axis=-1, keepdims=True)  # (B, H, Tq, Tk)
    if dropout_p > 0.0:
        p = p * Tensor(attention_mask(p.data, dropout_p, seed, stream))
    return p @ v  # (B, H, Tq, D)


def attention_mask(p: Array, dropout_p: float, seed: int, stream: int, first_row: int = 0) -> Array:
    """m, of p's shape (B, H, Tq, Tk). Row (b, h, i) uses row first_row + (b * H + h) * Tq + i of the random words."""
    B, H, Tq, Tk = p.shape
    return dropout_mask(dropout_p, seed, stream, B * H * Tq, Tk, p, first_row).reshape(p.shape)


def scores(q: Array, k: Array, is_causal: bool, scale: float) -> Array:
    """s (B, H, Tq, Tk)."""
    xp = array_module(q)
    s = xp.matmul(q, k.swapaxes(-1, -2))  # (B, H, Tq, Tk)
    s *= scale
    if is_causal:
        s = xp.where(xp.tri(*s.shape[2:], dtype=bool), s, s.dtype.type(-math.inf))
    return s


@kernel(strided=True, statistics={"lse": 1})
def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: int,
    stream: int,
    first_row: int = 0,
) -> tuple[Array, Array]:
    """q (B, H, Tq, D), k, v (B, H, Tk, D) -> y (B, H, Tq, D) in memory laid out (B, Tq, H, D), lse (B, H, Tq, 2)."""
    xp = array_module(q)
    B, H, Tq, D = q.shape
    s = scores(q, k, is_causal, scale)  # (B, H, Tq, Tk)
    m = s.max(axis=-1, keepdims=True)  # (B, H, Tq, 1)
    s -= m
    p = xp.exp(s, out=s)  # (B, H, Tq, Tk) not yet divided by its row sums
    total = p.sum(axis=-1, keepdims=True, dtype=xp.float64)  # (B, H, Tq, 1)
    p *= (1.0 / total).astype(p.dtype)
    if dropout_p > 0.0:
        p *= attention_mask(p, dropout_p, seed, stream, first_row)  # now a
    y = xp.empty((B, Tq, H, D), dtype=q.dtype).transpose(0, 2, 1, 3)  # (B, H, Tq, D)
    xp.matmul(p, v, out=y)
    return y, two_parts(m.astype(xp.float64)[..., 0], xp.log(total)[..., 0], q.dtype)


@kernel(strided=True, in_place=True)
def attention_backward(
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    lse: Array,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: int,
    stream: int,
    dq: Array,
    dk: Array,
    dv: Array,
    first_row: int = 0,
) -> None:
    """dy, y like q; y and lse from the forward pass. Writes the gradients of q, k, v into dq, dk, dv of any strides."""
    xp = array_module(q)
    s = scores(q, k, is_causal, scale)  # (B, H, Tq, Tk)
    near, rest = lse[..., :1], lse[..., 1:]  # (B, H, Tq, 1)
    s -= near
    p = xp.exp(s, out=s)  # (B, H, Tq, Tk)
    p *= xp.exp(-rest)
    dp = xp.matmul(dy, v.swapaxes(-1, -2))  # (B, H, Tq, Tk), still da until the mask is applied
    if dropout_p > 0.0:
        mask = attention_mask(p, dropout_p, seed, stream, first_row)  # (B, H, Tq, Tk)
        dp *= mask
        a = p * mask  # (B, H, Tq, Tk)
    else:
        a = p
    xp.matmul(a.swapaxes(-1, -2), dy, out=dv)
    delta = (dy * y).sum(axis=-1, keepdims=True, dtype=np.float64).astype(q.dtype)  # (B, H, Tq, 1)
    dp -= delta
    dp *= p
    dp *= scale
    ds = dp  # (B, H, Tq, Tk), already times scale
    xp.matmul(ds, k, out=dq)
    xp.matmul(ds.swapaxes(-1, -2), q, out=dk)


class Attention(Function):
    def forward(self, q: Array, k: Array, v: Array, options: tuple[Any, ...]) -> Array:
        y, lse = attention_forward(q, k, v, *options)
        self.save(q, k, v, y, lse)
        self.options = options
        return y

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        q, k, v, y, lse = self.saved
        xp = array_module(q)
        dq, dk, dv = (xp.empty(array.shape, dtype=array.dtype) for array in (q, k, v))
        attention_backward(dy, q, k, v, y, lse, *self.options[:-1], dq, dk, dv, self.options[-1])
        return dq, dk, dv


class QKVAttention(Function):
    """Attention on one array that holds q, k and v: they and their gradients are views, never copies."""

    def forward(self, qkv: Array, n_head: int, options: tuple[Any, ...]) -> Array:
        B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = self.heads(qkv, n_head)
        y, lse = attention_forward(q, k, v, *options)
        self.save(qkv, y, lse)
        self.n_head, self.options = n_head, options
        return y.transpose(0, 2, 1, 3).reshape(B, T, C)  # a view, because y is laid out (B, T, H, D)

    def backward(self, dy: Array) -> Array:
        qkv, y, lse = self.saved
        B, H, T, D = y.shape
        dqkv = array_module(qkv).empty(qkv.shape, dtype=qkv.dtype)  # (B, T, 3C)
        dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)  # (B, H, T, D)
        given, first_row = (*self.heads(qkv, self.n_head), y, lse, *self.options[:-1]), self.options[-1]
        attention_backward(dy, *given, *self.heads(dqkv, self.n_head), first_row)
        return dqkv

    @staticmethod
    def heads(qkv: Array, n_head: int) -> Array:
        """(B, T, 3C) -> three (B, H, T, D) views of it."""
        B, T, width = qkv.shape
        return qkv.reshape(B, T, 3, n_head, width // (3 * n_head)).transpose(2, 0, 3, 1, 4)


def kernel_options(
    operation: str, is_causal: bool, dropout_p: float, scale: float | None, shape: Shape, generator: Generator | None
) -> tuple[Any, ...]:
    """(is_causal, scale, dropout_p, seed, stream, first row), checked. shape: (B, H, Tq, D)."""
    p = require_probability(operation, "dropout_p", dropout_p)
    if scale is None:
        scale = 1.0 / math.sqrt(shape[-1])
    elif not isinstance(scale, (int, float, np.floating)) or not math.isfinite(scale):
        raise RangeError(f"{operation}: scale must be a finite number or None for 1 / sqrt(D), not {scale!r}")
    key = mask_key(operation, generator, math.prod(shape[:-1]), shape) if p > 0.0 else (0, 0, 0)
    return bool(is_causal), float(scale), p, *key


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool = True,
    dropout_p: float = 0.0,
    scale: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """softmax(scale * q k.T) v for every head, like PyTorch's scaled_dot_product_attention (causal by default).

    q: (B, H, Tq, D). k, v: (B, H, Tk, D). is_causal: query i sees the keys 0 .. i, aligned at the top left when Tq and
    Tk differ. scale: None means 1 / sqrt(D). dropout_p: in [0, 1), applied to the probabilities whenever it is above 0,
    so pass 0 outside training. generator: draws the mask; None means tinygpt.random.default_generator.
    Returns (B, H, Tq, D). Raises ShapeError, DtypeError, RangeError.
    """
    require_same_dtype("attention", q=q, k=k, v=v)
    fits = (
        q.ndim == 4 and k.ndim == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    )
    if not fits or k.shape[2] == 0 or q.shape[3] == 0:
        raise ShapeError(
            f"attention: q must be (B, H, Tq, D), k and v (B, H, Tk, D), with Tk and D >= 1, "
            f"not {q.shape}, {k.shape} and {v.shape}"
        )
    options = kernel_options("attention", is_causal, dropout_p, scale, q.shape, generator)
    return Attention.apply(q, k, v, options=options)


def qkv_attention(
    qkv: Tensor,
    n_head: int,
    is_causal: bool = True,
    dropout_p: float = 0.0,
    scale: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Self-attention on the output of GPT-2's c_attn: heads are split and merged without copies.

    qkv: (B, T, 3 C). The last axis holds q, then k, then v, each made of n_head heads of D = C / n_head numbers.
    The options are those of `attention`. Returns (B, T, C). Raises ShapeError, DtypeError, RangeError.
    """
    require_floating("qkv_attention", qkv=qkv)
    if not isinstance(n_head, (int, np.integer)):
        raise DtypeError(f"qkv_attention: n_head must be an integer, not {n_head!r}")
    if qkv.ndim != 3 or n_head < 1 or 0 in qkv.shape[1:] or qkv.shape[2] % (3 * n_head):
        raise ShapeError(
            f"qkv_attention: qkv must be (B, T, 3 C) with C a multiple of n_head ({n_head}) and T >= 1, not {qkv.shape}"
        )
    D = qkv.shape[2] // (3 * n_head)
    options = kernel_options(
        "qkv_attention", is_causal, dropout_p, scale, (qkv.shape[0], n_head, qkv.shape[1], D), generator
    )
    return QKVAttention.apply(qkv, n_head=int(n_head), options=options)
