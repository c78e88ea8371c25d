"""The row of the MLP that is one operation; see `__init__.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.ops.drawing import Example, KernelRow, Row, inputs, leading, reduced
from tinygpt.ops._gelu_mlp import GeluMLP, gelu_mlp, gelu_mlp_composed


@st.composite
def gelu_mlps(draw: Any) -> Example:
    C, hidden, out = draw(reduced), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    x = (*draw(st.lists(leading, max_size=2)), C)
    bias = [draw(inputs((hidden,)))] if draw(st.booleans()) else []
    return Example((draw(inputs(x)), draw(inputs((C, hidden))), draw(inputs((hidden, out))), *bias))


ROWS = [Row("gelu_mlp", gelu_mlp, gelu_mlps(), (GeluMLP,), gelu_mlp_composed)]
KERNEL_ROWS: list[KernelRow] = []
