"""Arguments of the compiled kernels at sizes that cross every tile, chunk and block of their bodies; see `__init__.py`.

The rows draw sizes around the widths of vectors, which a body does in one chunk. What goes wrong at the seams of its
work needs more of it, and costs too much for hypothesis to draw: here are a few sizes for each kernel, chosen by the
constants in `tinygpt/_ext`. When one of those grows, the sizes here must grow with it.

- A chunk of rows (`grain_of` in common.pxi) is ALONE = 32768 bytes: rows of 65 floats come in chunks of 127 forward,
  of 64 in cross-entropy's gradient, of 32 in dropout. A span of elements is SPAN = 8192, a block of rows whose sums
  have a table of their own is BLOCK = 128, a chunk of the columns of such a table 4097 where it has one row (2049 where
  it has two), a span of columns of an embedding COLUMNS = 64.
- Rows of up to SHORT = 1024 take their steps TOGETHER = 8 at a time, NEAR = 4 in LayerNorm; a vocabulary beyond
  PIECE = 2048 is summed in pieces; vectors are added up in single precision 128 numbers at a time; a dropout mask is
  made 128 words at a time.
- Attention's tiles have 64 queries and 128 keys, backward 64; its products' blocks have 6 rows and up to 64 columns; 40
  heads make chunks of several heads, on one thread and on two.
- A product's strips have 14 rows, its panels 32 columns, its pieces of the sum 640 terms, its bands 16 strips and its
  parts 8 panels; where A is transposed, slices of 64 terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ops.drawing import IGNORE, Example, Input, lay_out, normal, positive, targets_below
from tinygpt.ops._two_parts import two_parts
from tinygpt.ops.attention import scores

KEY = (2**40 + 1, 2**32 + 5)  # of dropout: seed and stream, of more than 32 bits
ROWS = (300, 65)  # whole chunks and blocks and a broken one, rows that are no multiple of a vector
FEW_LONG_ROWS = (3, 5000)


def arrays(*shapes: tuple[int, ...], values: Any = normal) -> list[Input]:
    return [Input(shape, "C", seed, values) for seed, shape in enumerate(shapes)]


def rows(count: int, *shapes: tuple[int, int]) -> list[Example]:
    return [Example(tuple(arrays(*[shape] * count))) for shape in shapes]


def with_vector(count: int, *shapes: tuple[int, int]) -> list[Example]:
    """`count` arrays (N, C) and one (C,)."""
    return [Example(tuple(arrays(*[shape] * count, shape[1:]))) for shape in shapes]


def spans(count: int) -> list[Example]:
    """Several spans of elements, the last one short."""
    return rows(count, (2, 10001))


def layer_norm(backward: bool, N: int, C: int) -> Example:
    if not backward:
        return Example((*arrays((N, C), (C,), (C,)), 1e-5))
    return Example((*arrays((N, C), (N, C), (C,), (N, 2)), Input((N,), "C", 9, positive), True))


def residual(backward: bool, N: int, C: int, p: float) -> Example:
    if not backward:
        return Example((*arrays((N, C), (N, C), (C,), (C,), (C,)), 1e-5, p, *KEY))
    inputs = arrays((N, C), (N, C), (N, C), (C,), (N, 2))
    return Example((*inputs, Input((N,), "C", 9, positive), p, *KEY, True, True))


def cross_entropy(kind: str, N: int, V: int) -> Example:
    logits, targets = Input((N, V)), Input((N,), "C", 1, targets_below(V))
    if kind == "backward":
        return Example((Input((N,), "C", 2), logits, targets, Input((N, 2), "C", 3, positive), IGNORE))
    return Example((logits, targets, IGNORE, 0.125) if kind == "inplace" else (logits, targets, IGNORE))


def cross_entropies(kind: str) -> list[Example]:
    return [cross_entropy(kind, *shape) for shape in (ROWS, FEW_LONG_ROWS)]


def embedding(backward: bool, V: int, N: int, C: int) -> Example:
    ids = Input((N,), "C", 1, targets_of_all(V))
    return Example((Input((N, C), "C", 2), ids, Input((V, C), "C", 3)) if backward else (Input((V, C), "C", 2), ids))


def targets_of_all(V: int) -> Any:
    return lambda rng, shape: rng.integers(0, V, shape)


@dataclass(frozen=True)
class LogSums(Input):
    """The logarithms of sums of exponentials, in two parts, that attention's forward pass gives for q and k: with any
    others, probabilities above 1 would come out of them."""

    q: Input = field(kw_only=True)
    k: Input = field(kw_only=True)
    is_causal: bool = field(kw_only=True)
    scale: float = field(kw_only=True)

    def make(self, dtype: Any = np.float64) -> np.ndarray:
        s = scores(self.q.make(), self.k.make(), self.is_causal, self.scale)
        top = s.max(axis=-1, keepdims=True)
        sums = np.exp(s - top).sum(axis=-1)
        return lay_out(two_parts(top[..., 0], np.log(sums), dtype), self.layout)


def attention(backward: bool, heads: int, Tq: int, Tk: int, D: int, is_causal: bool, dropout_p: float) -> Example:
    queries, keys = (heads // 2, 2, Tq, D), (heads // 2, 2, Tk, D)
    q, k, v, y, dy = arrays(queries, keys, keys, queries, queries)
    options = (is_causal, 0.3, dropout_p, *KEY)
    if not backward:
        return Example((q, k, v, *options))
    lse = LogSums((*queries[:3], 2), q=q, k=k, is_causal=is_causal, scale=0.3)
    return Example((dy, q, k, v, y, lse, *options, *arrays(queries, keys, keys)))


def attentions(backward: bool) -> list[Example]:
    return [
        attention(backward, 2, 150, 290, 80, False, 0.5),
        attention(backward, 2, 150, 150, 24, True, 0.0),
        attention(backward, 2, 290, 70, 33, True, 0.5),
        attention(backward, 40, 9, 7, 8, True, 0.0),
    ]


def product(M: int, K: int, N: int, layout: str, add: bool) -> Example:
    return Example((Input((M, K), layout, 0), Input((K, N), "C", 1), Input((M, N), "C", 2), add))


def adamw(size: int) -> Example:
    inputs = (*arrays((size,), (size,), (size,)), Input((size,), "C", 3, positive))
    return Example((*inputs, 1e-2, 0.9, 0.99, 1e-8, 0.1, 3, 0.3))
