"""The rows of SiLU; see `__init__.py`."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinygpt as tg
from tests.ops.cases.large import spans
from tests.ops.cases.neural import any_array, kernel_rows
from tests.ops.cases.wide import of_all_sizes, rows_of, wide
from tests.ops.drawing import KernelRow, Row
from tests.ops.random_graph_operations import one
from tinygpt import ops
from tinygpt.ops.silu import Silu, silu_composed

EQUIVALENT = {
    "a pack at the very end is then taken one by one": [
        "silu.cu: if (at + width <= size)  ->  if (at + width < size)",
        "silu.cu: if (at + width <= size)  ->  if (at + width < size)  #2",
    ],
    "equal numbers: it makes no difference which is taken": [
        "silu.cu: return x > 750 ? (T)750 : x < -750 ? (T)-750 : x;"
        "  ->  return x >= 750 ? (T)750 : x < -750 ? (T)-750 : x;",
        "silu.cu: d[i] *= (at < 0 ? t * r : r) + at * (t * r * r);"
        "  ->  d[i] *= (at <= 0 ? t * r : r) + at * (t * r * r);",
    ],
}
whole = tg.tensor(np.zeros((2, 3), np.int64))


def some_minus_infinity(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """SiLU of it is 0, where the formula has infinity / infinity."""
    return np.where(rng.random(shape) < 0.1, -np.inf, rng.standard_normal(shape))


ROWS = [
    Row(
        "silu",
        ops.silu,
        any_array(),
        (Silu,),
        silu_composed,
        graph=one(),
        torch=lambda torch, x: torch.nn.functional.silu(x),
        numerics=((24, 70),),
        refused=((lambda: ops.silu(whole), tg.errors.DtypeError, ("silu", "float32 or float64", "int64")),),
    )
]

KERNEL_ROWS = [
    KernelRow(
        "silu_forward",
        kernel_rows(),
        large=spans(1),
        wide=st.one_of(kernel_rows(C=wide), rows_of(of_all_sizes), rows_of(some_minus_infinity)),
    ),
    KernelRow(
        "silu_backward",
        kernel_rows(count=2),
        large=spans(2),
        wide=st.one_of(kernel_rows(count=2, C=wide), rows_of(of_all_sizes, 2)),
    ),
]
