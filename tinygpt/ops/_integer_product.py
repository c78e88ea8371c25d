"""Products of 8-bit weights with activations rounded to 8 bits: sums of integers.

A processor multiplies bytes two to four times as fast as float32 numbers, which is what bounds a batch of texts. So the
activations are rounded as the weights are: of each `span` of neighbouring terms,

    scale = max|x| / 127      q = x / scale to the nearest integer, of two the even one

and the product with the weights w = p * weight_scale is, span by span,

    y = sum over spans of (scale * weight_scale) * (sum over the span of q p)

The sum in brackets is a whole number below 2 ** 24, so it is exact in any order, in int32 as in float32. What is left
to float32 happens in one order everywhere: the compiled bodies have the bits of `integer_product`.

An activation is off by at most scale / 2, a relative error of 1/254 of the largest in its span. That comes on top of
the weights' own error; spans are short so that one large activation spoils 31 others, not the whole row. A span that
holds nan or inf has no scale, and makes its row nan.

Letters: M rows, K terms, N outputs, S spans. Source: Dettmers et al., "LLM.int8()", 2022, section 3.1, for vectors;
spans of 32 are those of llama.cpp's q8_0.
"""

from __future__ import annotations

import math

import numpy as np

from ..backends import array_module
from ..typing import Array

SPAN = 32  # TG_SPAN_TERMS in integer_tile.h
PIECES = 8  # into which a sum over the rows of a matrix is cut: TG_BLOCKS in few_rows.h


def span_of(group: int, terms: int) -> int:
    """How many activations share a scale: as many as fit within one group of weights."""
    return SPAN if group >= terms else math.gcd(group, SPAN)


def rounded(x: Array, span: int) -> tuple[Array, Array]:
    """x (M, K) -> whole numbers in -127 .. 127 (M, K), of x's type, and the scales (M, S)."""
    xp = array_module(x)
    M, K = x.shape
    padded = xp.zeros((M, -(-K // span), span), x.dtype)  # (M, S, span)
    padded.reshape(M, padded.shape[1] * span)[:, :K] = x
    largest = abs(padded).max(axis=2, keepdims=True)  # (M, S, 1)
    finite = xp.isfinite(largest)
    scale = xp.where(finite, xp.maximum(largest / 127, np.finfo(np.float32).tiny), 1).astype(x.dtype)
    q = xp.where(finite, xp.rint(xp.where(finite, padded, 0) / scale), 0).astype(x.dtype)
    return q.reshape(M, q.shape[1] * span)[:, :K], xp.where(finite, scale, np.nan).astype(x.dtype)[:, :, 0]


def integer_product(x: Array, data: Array, scale: Array, group: int, pieces: int = PIECES) -> Array:
    """x (M, K) times int8 weights (K, N) with scales (ceil(K / group), N) -> (M, N).

    The spans are cut into `pieces` runs of nearly equal length. The spans of a run are added one by one, then the runs.
    Where all terms of an output share one scale, it multiplies the finished sum.
    """
    xp = array_module(x)
    (M, K), N = x.shape, data.shape[1]
    span, whole = span_of(group, K), group >= K
    q, x_scale = rounded(x, span)  # (M, K), (M, S)
    spans = x_scale.shape[1]
    y = xp.zeros((M, N), x.dtype)
    for piece in range(pieces):
        part = xp.zeros((M, N), x.dtype)
        for s in range(spans * piece // pieces, spans * (piece + 1) // pieces):
            terms = slice(s * span, (s + 1) * span)
            product = q[:, terms] @ data[terms].astype(x.dtype) * x_scale[:, s, None]  # (M, N)
            part += product if whole else product * scale[s * span // group]
        y += part
    return y * scale[0] if whole else y
