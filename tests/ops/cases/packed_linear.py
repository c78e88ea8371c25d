"""The rows of products with packed weights as nodes; the kernels that they call have their own tests (`packed.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.ops.cases.neural import row_shapes
from tests.ops.cases.packed import ALL_FORMATS, drawn_matrix, terms
from tests.ops.drawing import Example, KernelRow, Row, inputs
from tinygpt.ops.packed import BLOCK, Matrix, unpack
from tinygpt.ops.packed_linear import PackedProduct, PackedProductTransposed
from tinygpt.tensor import Tensor, tensor


@st.composite
def with_a_matrix(draw: Any, axis: int) -> Example:
    """x (..., K) and a packed matrix (K, N), or (N, K) if axis 1 is summed over."""
    form = draw(st.sampled_from([("float32", None), ("bfloat16", None), ("int8", None), ("int8", 8), ("int4", None)]))
    assert form in ALL_FORMATS
    shape = draw(row_shapes(zero=False))
    shape = (*shape[:-1], terms(shape[-1], form))
    N = draw(st.sampled_from([1, 7, 8, 33, BLOCK // shape[-1] + 50]))  # the last: unpacked in several blocks
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    sizes = (shape[-1], N) if axis == 0 else (N, shape[-1])
    return Example((draw(inputs(shape)),), {"matrix": drawn_matrix(rng, sizes, form, axis)})


def weights(x: Tensor, matrix: Matrix, axis: int) -> Tensor:
    return tensor(np.asarray(unpack(matrix, axis), x.dtype))


ROWS = [
    Row(
        "packed_product",
        lambda x, matrix: PackedProduct.apply(x, matrix=matrix),
        with_a_matrix(axis=0),
        (PackedProduct,),
        lambda x, matrix: x @ weights(x, matrix, 0),
    ),
    Row(
        "packed_product_transposed",
        lambda x, matrix: PackedProductTransposed.apply(x, matrix=matrix),
        with_a_matrix(axis=1),
        (PackedProductTransposed,),
        lambda x, matrix: x @ weights(x, matrix, 1).transpose(1, 0),
    ),
]
KERNEL_ROWS: list[KernelRow] = []
