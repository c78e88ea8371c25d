"""The rows of layer normalisation; see `__init__.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.ops.cases import large as sizes
from tests.ops.cases.wide import many_rows, no_equal_rows, tall, wide
from tests.ops.drawing import Example, KernelRow, Row, inputs, leading, positive, reduced
from tinygpt import ops
from tinygpt.ops.layer_norm import LayerNorm, layer_norm_composed


@st.composite
def layer_norm_examples(draw: Any) -> Example:
    C = draw(reduced)
    shape = (*draw(st.lists(leading, max_size=2)), C)
    bias = [draw(inputs((C,)))] if draw(st.booleans()) else []
    return Example((draw(inputs(shape)), draw(inputs((C,))), *bias), {"eps": draw(st.sampled_from([1e-5, 0.1]))})


@st.composite
def layer_norm_forward_examples(draw: Any, C: Any = reduced) -> Example:
    N, C = draw(leading), draw(C)
    bias = draw(st.one_of(st.none(), inputs((C,))))
    return Example((draw(inputs((N, C))), draw(inputs((C,))), bias, 1e-5))


@st.composite
def layer_norm_backward_examples(draw: Any, N: Any = leading, C: Any = reduced) -> Example:
    N, C = draw(N), draw(C)
    rows, row = inputs((N, C)), inputs((C,))
    statistics = draw(inputs((N, 2))), draw(inputs((N,), positive))
    return Example((draw(rows), draw(rows), draw(row), *statistics, draw(st.booleans())))


ROWS = [Row("layer_norm", ops.layer_norm, layer_norm_examples(), (LayerNorm,), layer_norm_composed)]

KERNEL_ROWS = [
    KernelRow(
        "layer_norm_forward",
        layer_norm_forward_examples(),
        large=[sizes.layer_norm(False, *sizes.ROWS), sizes.layer_norm(False, 6, 1500)],
        wide=layer_norm_forward_examples(C=wide),
    ),
    KernelRow(
        "layer_norm_backward",
        layer_norm_backward_examples(),
        large=[sizes.layer_norm(True, *sizes.ROWS), sizes.layer_norm(True, *sizes.FEW_LONG_ROWS)],
        wide=st.one_of(
            layer_norm_backward_examples(N=tall, C=wide),
            layer_norm_backward_examples(**many_rows).filter(no_equal_rows),
        ),
    ),
]
