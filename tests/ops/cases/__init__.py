"""One row for each operation and for each kernel: how to draw inputs for it. All checks run over the rows.

`test_operations.py` runs its checks over ROWS, `test_checker.py` breaks each row's backward pass,
`tests/kernel/test_kernels.py` compares the bodies of each kernel over KERNEL_ROWS. An operation or a kernel without a
row fails a test there.

Draw the values away from kinks (relu at 0, ties in max) and poles (log at 0): the check compares with differences.
The rows of the primitive operations are in `primitive.py`, those of the neural network in `neural.py`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.ops.cases.neural import NEURAL, NEURAL_KERNELS
from tests.ops.cases.primitive import PRIMITIVE_KERNELS, PRIMITIVES
from tests.ops.drawing import (
    Example,
    Input,
    KernelRow,
    Row,
    away_from_zero,
    inputs,
    leading,
    normal,
    positive,
    reduced,
    seeds,
)
from tinygpt import ops
from tinygpt.ops.layer_norm import LayerNorm, layer_norm_composed
from tinygpt.optim import regularization
from tinygpt.tensor import Tensor

# Layer normalisation ------------------------------------------------------------------------------


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


# Optimizers ---------------------------------------------------------------------------------------


@st.composite
def penalised(draw: Any) -> Example:
    """Parameters away from 0, where the absolute value has its kink."""
    shapes = draw(st.lists(st.lists(leading, max_size=2), min_size=1, max_size=3))
    arrays = tuple(draw(inputs((*shape, draw(reduced)), away_from_zero)) for shape in shapes)
    return Example(arrays, {"strength": draw(st.sampled_from([0.0, 0.3, 2.0]))})


def l1_composed(*parameters: Tensor, strength: float) -> Tensor:
    return strength * ops.concatenate([ops.where(p > 0, p, -p).reshape(-1) for p in parameters], 0).sum()


def l2_composed(*parameters: Tensor, strength: float) -> Tensor:
    return 0.5 * strength * ops.concatenate([(p * p).reshape(-1) for p in parameters], 0).sum()


@st.composite
def adamw_update_examples(draw: Any, size: Any = reduced) -> Example:
    shape = tuple(draw(st.lists(size, max_size=2)))
    layout = draw(st.sampled_from(["C", "C", "F", "negative"]))  # param, m and v are written
    param, m, v = (Input(shape, layout, draw(seeds), values) for values in (normal, normal, positive))
    rates = (1e-2, 0.9, 0.99, draw(st.sampled_from([1e-8, 0.1])), draw(st.sampled_from([0.0, 0.1])))
    return Example(
        (param, draw(inputs(shape)), m, v, *rates, draw(st.integers(1, 1000)), draw(st.sampled_from([1.0, 0.3])))
    )


@st.composite
def sum_of_squares_examples(draw: Any, size: Any = reduced) -> Example:
    return Example((draw(inputs((draw(leading), draw(size), draw(size)))),))


ROWS = [
    *PRIMITIVES,
    Row("layer_norm", ops.layer_norm, layer_norm_examples(), (LayerNorm,), layer_norm_composed),
    *NEURAL,
    Row("l1", lambda *p, strength: regularization.l1(p, strength), penalised(), (regularization.L1,), l1_composed),
    Row("l2", lambda *p, strength: regularization.l2(p, strength), penalised(), (regularization.L2,), l2_composed),
]

KERNEL_ROWS = [
    *PRIMITIVE_KERNELS,
    KernelRow("layer_norm_forward", layer_norm_forward_examples()),
    KernelRow("layer_norm_backward", layer_norm_backward_examples()),
    *NEURAL_KERNELS,
    KernelRow("adamw_update", adamw_update_examples(), writes=(0, 2, 3)),
    KernelRow("sum_of_squares", sum_of_squares_examples()),
]

# Those that have a compiled body for the CPU.
COMPILED_ROWS = [row for row in KERNEL_ROWS if not row.name.startswith("binary_cross_entropy")]
