"""How the rows draw wider arguments for CUDA bodies: several warps, several blocks, values of another size."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.ops.drawing import IGNORE, Example, Input, fractions, normal, positive, seeds, targets_below

# Around one, two and several warps, as packs of four, of two, and one by one; and beyond a block's most threads.
wide = st.sampled_from([31, 32, 64, 96, 127, 129, 132, 200, 260, 513, 520, 1030])
tall = st.sampled_from([1, 7, 17, 40])  # more than the warps of a block, and than a chunk of rows
pieces = st.sampled_from([1, 32, 33, 64, 200])  # of 32 positions
large_sizes = st.sampled_from([1, 37, 64, 130])
head_sizes = st.sampled_from([24, 32, 34, 64, 68, 100, 128, 130])

# Values of another size ---------------------------------------------------------------------------


def steep(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """So far apart that exp overflows unless the greatest of a row, its last, has been taken away."""
    return np.sort(300 * rng.standard_normal(shape), axis=-1)


def of_all_sizes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """From a tenth to 1e25: a cube of the largest is beyond float32."""
    return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-1, 25, shape))


@st.composite
def rows_of(draw: Any, values: Any, count: int = 1, targets: bool = False) -> Example:
    """`count` arrays (N, C) of these values, or normal ones and then one of these."""
    N, C = draw(tall), draw(wide)
    arrays = [Input((N, C), "C", draw(seeds), kind) for kind in [normal] * (count - 1) + [values]]
    more = [Input((N,), "C", draw(seeds), targets_below(C)), IGNORE] if targets else []
    return Example((*arrays, *more))


@st.composite
def logits_and_targets(draw: Any, count: int) -> Example:
    """`count` arrays and then targets, of several blocks or less than one."""
    shape = (draw(tall), draw(wide))
    return Example((*[Input(shape, "C", draw(seeds)) for _ in range(count)], Input(shape, "C", draw(seeds), fractions)))


def tiles_of_attention(backward: bool, D: int, Tq: int, Tk: int, is_causal: bool, dropout_p: float) -> Example:
    """Two heads of one sequence, or one of each of two."""
    B, H = (2, 1) if D == 7 else (1, 2)
    q, k, v, y, dy = (Input((B, H, T, D), "C", seed) for seed, T in enumerate((Tq, Tk, Tk, Tq, Tq)))
    options = (is_causal, 0.3, dropout_p, 2**40 + 1, 2**32 + 5)
    if not backward:
        return Example((q, k, v, *options))
    lse = Input((B, H, Tq, 2), "C", 9, positive)
    return Example((dy, q, k, v, y, lse, *options, *(Input((B, H, T, D)) for T in (Tq, Tk, Tk))))


TILES = [  # of 64 or 32 queries and 32 or 16 keys: whole ones, and one query or key more
    (32, 97, 65, False, 0.5),
    (32, 65, 97, True, 0.5),
    (7, 64, 64, True, 0.0),
    (100, 33, 49, False, 0.5),
]


def several_tiles(backward: bool = False) -> st.SearchStrategy[Example]:
    return st.sampled_from([tiles_of_attention(backward, *sizes) for sizes in TILES])


def no_equal_rows(example: Example) -> bool:
    """Equal terms are rounded alike, and their errors add up; the rule takes them for random, as others are."""
    return all(a.layout != "broadcast" for a in example.arrays if isinstance(a, Input))


many_rows = {"N": st.just(513), "C": st.sampled_from([3, 132])}  # more than blocks
