"""One row for each operation: how to draw inputs for it. All checks of `test_ops.py` run over the rows.

A row names the public function, how to draw its arguments, and, where there is one, the composed oracle. The
classes of graph nodes that the function is made of are listed too, so that an operation without a row, or a
backward pass without a mutation test, is noticed.

Draw the values away from kinks (relu at 0, ties in max) and poles (log at 0): the check compares with differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drawing import Example, inputs, leading, reduced
from hypothesis import strategies as st

from tinygpt import ops
from tinygpt.function import Function
from tinygpt.ops.layer_norm import LayerNorm, layer_norm_composed


@dataclass(frozen=True)
class Row:
    """function(*tensors, **options) for the arguments that `examples` draws."""

    name: str
    function: Callable[..., Any]
    examples: st.SearchStrategy[Example]
    nodes: tuple[type[Function], ...]
    composed: Callable[..., Any] | None = None
    takes_nan: bool = True  # a NaN anywhere in an input must come out somewhere


@st.composite
def layer_norm_examples(draw: Any) -> Example:
    C = draw(reduced)
    shape = (*draw(st.lists(leading, max_size=2)), C)
    arrays = (draw(inputs(shape)), draw(inputs((C,))), draw(inputs((C,))))
    return Example(arrays, {"eps": draw(st.sampled_from([1e-5, 0.1]))})


ROWS = [
    Row("layer_norm", ops.layer_norm, layer_norm_examples(), (LayerNorm,), layer_norm_composed),
]
