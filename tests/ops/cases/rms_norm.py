"""The rows of RMSNorm; see `__init__.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import tinygpt as tg
from tests.ops.cases.large import FEW_LONG_ROWS, arrays
from tests.ops.cases.large import ROWS as TALL
from tests.ops.cases.wide import many_rows, no_equal_rows, tall, wide
from tests.ops.drawing import Example, Input, KernelRow, Row, inputs, leading, positive, reduced
from tests.ops.random_graph_operations import full_rows
from tinygpt import ops
from tinygpt.ops.rms_norm import RMSNorm, rms_norm_composed


@st.composite
def rms_norm_examples(draw: Any) -> Example:
    C = draw(reduced)
    x = draw(inputs((*draw(st.lists(leading, max_size=2)), C)))
    return Example((x, draw(inputs((C,)))), {"eps": draw(st.sampled_from([1e-5, 0.1]))})


@st.composite
def forward_arguments(draw: Any, C: Any = reduced) -> Example:
    N, C = draw(leading), draw(C)
    return Example((draw(inputs((N, C))), draw(inputs((C,))), 1e-5))


@st.composite
def backward_arguments(draw: Any, N: Any = leading, C: Any = reduced) -> Example:
    N, C = draw(N), draw(C)
    rows = inputs((N, C))
    return Example((draw(rows), draw(rows), draw(inputs((C,))), draw(inputs((N,), positive))))


def large_forward(N: int, C: int) -> Example:
    return Example((*arrays((N, C), (C,)), 1e-5))


def large_backward(N: int, C: int) -> Example:
    return Example((*arrays((N, C), (N, C), (C,)), Input((N,), "C", 9, positive)))


def of_some_size(x: np.ndarray) -> bool:
    """Rows that the division does not blow up."""
    return full_rows(x) and float(np.sqrt((x * x).mean(axis=-1)).min()) > 0.3


def in_a_graph(b: Any) -> Any:
    x = b.value(of_some_size)
    return (x, b.like(b.values[x].shape[-1:])), {"eps": 1e-5}


def torch_rms_norm(torch: Any, x: Any, weight: Any, eps: float = 1e-5) -> Any:
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


LOOP = "for (int j = threadIdx.x * width; j < C; j += blockDim.x"
EQUIVALENT = {
    "neighbouring threads then write some packs more than once, always the same numbers": [
        f"rms_norm.cu: {LOOP} * width) {{  ->  {LOOP}) {{  #2",
        f"rms_norm.cu: {LOOP} * width) {{  ->  {LOOP}) {{  #4",
        f"rms_norm.cu: {LOOP} * width)  ->  {LOOP})  #2",
    ],
}
ones = tg.tensor(np.ones((2, 3), np.float32))

ROWS = [
    Row(
        "rms_norm",
        ops.rms_norm,
        rms_norm_examples(),
        (RMSNorm,),
        rms_norm_composed,
        graph=in_a_graph,
        torch=torch_rms_norm,
        numerics=((24, 70), (70,)),
        refused=(
            (lambda: ops.rms_norm(ones, ones), tg.errors.ShapeError, ("rms_norm: weight", "(3,)", "(2, 3)")),
            (lambda: ops.rms_norm(ones.sum(), ones), tg.errors.ShapeError, ("rms_norm: x", "last axis", "()")),
            (lambda: ops.rms_norm(ones, ones[0], -1.0), tg.UsageError, ("rms_norm: eps", "-1.0")),
            (lambda: ops.rms_norm(ones, None), tg.errors.DtypeError, ("rms_norm: weight", "NoneType")),  # type: ignore[arg-type]
        ),
    )
]

KERNEL_ROWS = [
    KernelRow(
        "rms_norm_forward",
        forward_arguments(),
        large=[large_forward(*TALL), large_forward(*FEW_LONG_ROWS)],
        wide=forward_arguments(C=wide),
    ),
    KernelRow(
        "rms_norm_backward",
        backward_arguments(),
        large=[large_backward(*TALL), large_backward(*FEW_LONG_ROWS)],
        wide=st.one_of(backward_arguments(N=tall, C=wide), backward_arguments(**many_rows).filter(no_equal_rows)),
    ),
]
