"""Weights of four bits, in groups of 32 terms of a sum: w ~ q * scale with q in -8 .. 7.

A group's scale is the one of least squared error among a few. The first candidate, where the largest weight is -8, is
that of llama.cpp's format q4_0; with the others, largest weights of -7, -7.5 and -8.5 steps, and the best scale for the
q that follow, the squared error of normally distributed weights is 11% smaller. (A weight beyond the range takes its
end.) The scale is stored in bfloat16, which costs 0.02% of the squared error; so 32 weights take 18 bytes, 4.5 bits
each.

The order in memory is that in which a product reads them. W (K, N) is in panels of 16 columns, N padded by zeros:

- data (panels, K / 8, 16), uint32: element [p, i, c] holds the weights W[8 i .. 8 i + 7, 16 p + c], each q in two's
  complement. The low halves of its four bytes, from the lowest byte on, are the first four weights, the high halves the
  others.
- scale (panels, K / 32, 16), uint16: the upper halves of float32 numbers

so that a panel is contiguous, and one vector instruction processes eight or sixteen columns.

The same weights give the same bits on every machine: sums are made term by term, in the order of the terms.

No oracle: it has no gradient; the tests have their own definitions.

Source: the format q4_0 of llama.cpp, https://github.com/ggml-org/ggml, ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from ..backends import array_module
from ..kernel import kernel
from ..typing import Array
from ._bfloat16 import from_bfloat16, to_bfloat16

GROUP = 32  # terms of a sum that share a scale
PANEL = 16  # columns
WORD = 8  # weights of a word
SHIFTS = (0, 8, 16, 24, 4, 12, 20, 28)  # of a word's weights: two to a byte, four terms apart
STEPS = (8, 7.5, 8.5, 7)  # candidates for the largest weight of a group, in units of its scale
BLOCK = 1 << 15  # how many weights to pack at a time, so that intermediate results fit into the cache
SMALLEST = np.finfo(np.float32).tiny  # normal number: a subnormal scale would be too inaccurate


def to_panels(weight: Array) -> tuple[Array, Array]:
    """Finite float32 weights (K, N), K a multiple of GROUP -> `(data, scale)`."""
    xp, (K, N) = array_module(weight), weight.shape
    panels = -(-N // PANEL)
    data = xp.empty((panels, K // WORD, PANEL), np.uint32)
    scale = xp.empty((panels, K // GROUP, PANEL), np.uint16)
    step = max(1, BLOCK // (K * PANEL))
    for first in range(0, panels, step):
        count = min(step, panels - first)
        columns = weight[:, first * PANEL : (first + count) * PANEL]
        part = xp.zeros((K, count * PANEL), np.float32)
        part[:, : columns.shape[1]] = columns
        words, scales = round_columns(part, xp.asarray(STEPS, np.float32))
        data[first : first + count] = words.reshape(len(words), count, PANEL).transpose(1, 0, 2)
        scale[first : first + count] = scales.reshape(len(scales), count, PANEL).transpose(1, 0, 2)
    return data, scale


@kernel
def round_columns(weight: Array, steps: Array) -> tuple[Array, Array]:
    """weight (K, N), steps (candidates,) -> words (K / 8, N), scales (K / 32, N), of least squared error."""
    xp, (K, N) = array_module(weight), weight.shape
    groups = weight.reshape(K // GROUP, GROUP, N)
    most, least = groups.max(axis=1), groups.min(axis=1)
    extreme = _not_tiny(xp.where(most > -least, most, least))  # (G, N)
    relative = groups / extreme[:, None]  # in -1 .. 1, so that no square overflows
    best, scale, smallest = xp.zeros_like(groups), extreme, xp.full_like(extreme, np.inf)
    for step in steps:
        q = xp.clip(xp.rint(relative * -step), -8, 7)
        of_these = _sum(relative * q) / xp.maximum(_sum(q * q), np.float32(1))
        candidate = from_bfloat16(to_bfloat16(_not_tiny(extreme * of_these)))
        q = xp.clip(xp.rint(groups / candidate[:, None]), -8, 7)
        error = _sum((relative - q * (candidate / extreme)[:, None]) ** 2)
        better = error < smallest
        best = xp.where(better[:, None], q, best)
        scale, smallest = xp.where(better, candidate, scale), xp.where(better, error, smallest)
    return _words(best.reshape(K // WORD, WORD, N)), to_bfloat16(scale)


def _not_tiny(x: Array) -> Array:
    return array_module(x).where(abs(x) < SMALLEST, SMALLEST, x)


def _sum(terms: Array) -> Array:
    """(G, GROUP, N) -> (G, N), in the order of the terms on every machine."""
    total = terms[:, 0].copy()
    for k in range(1, GROUP):
        total += terms[:, k]
    return total


def _words(q: Array) -> Array:
    """q (K / 8, 8, N) -> (K / 8, N), uint32."""
    bits = q.astype(np.int32).view(np.uint32) & 15
    words = bits[:, 0] << SHIFTS[0]
    for term in range(1, WORD):
        words |= bits[:, term] << SHIFTS[term]
    return words


def from_panels(data: Array, scale: Array, outputs: int) -> Array:
    """The float32 weights (K, outputs) that `(data, scale)` stand for."""
    return _unpacked(by_rows(data), by_rows(scale))[:, :outputs]


def by_rows(panels: Array) -> Array:
    """(panels, R, 16) -> (R, panels * 16): what lies in panels, as rows of the matrix."""
    rows: Array = panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)
    return rows


def integers(data: Array, scale: Array, outputs: int) -> tuple[Array, Array]:
    """The weights as q (K, outputs), int8, and scales (K / 32, outputs), float32."""
    return q_of(by_rows(data))[:, :outputs], from_bfloat16(by_rows(scale))[:, :outputs]


def rows_of(data: Array, scale: Array, ids: Array) -> Array:
    """The rows `ids` (n,) of the transposed weights, as float32 (n, K)."""
    panel, place = ids // PANEL, ids % PANEL
    weights = _unpacked(data[panel, :, place].T, scale[panel, :, place].T)
    rows: Array = array_module(data).ascontiguousarray(weights.T)
    return rows


def _unpacked(words: Array, scales: Array) -> Array:
    """words (K / 8, n), scales (K / 32, n) -> float32 (K, n)."""
    groups = q_of(words).reshape(len(scales), GROUP, -1) * from_bfloat16(scales)[:, None]
    return groups.reshape(GROUP * len(scales), -1)


def q_of(words: Array) -> Array:
    """words (K / 8, n) -> int8 (K, n)."""
    shifts = array_module(words).asarray(SHIFTS, dtype=np.uint32)[None, :, None]
    bits = (words[:, None] >> shifts) & np.uint32(15)  # (K / 8, 8, n)
    return ((bits.astype(np.int8) ^ np.int8(8)) - np.int8(8)).reshape(WORD * len(words), -1)
