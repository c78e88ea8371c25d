"""The rows of what the optimizers and penalties compute; see `__init__.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.ops.cases import large as sizes
from tests.ops.cases.wide import large_sizes
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
from tinygpt.optim import regularization
from tinygpt.tensor import Tensor


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
def lion_update_examples(draw: Any) -> Example:
    """The direction is a sign: it must not hang on a rounding, so the gradient outweighs the momentum."""
    shape = tuple(draw(st.lists(reduced, max_size=2)))
    layout = draw(st.sampled_from(["C", "C", "F", "negative"]))  # param and m are written
    param, m = (Input(shape, layout, draw(seeds), values) for values in (normal, positive))
    rates = (1e-2, 0.9, 0.99, draw(st.sampled_from([0.0, 0.1])), draw(st.sampled_from([1.0, 0.3])))
    return Example((param, draw(inputs(shape, positive)), m, *rates))


@st.composite
def newton_schulz_examples(draw: Any) -> Example:
    rows, more = draw(reduced), draw(st.sampled_from([0, 1, 7]))
    return Example((draw(inputs((draw(leading), rows, rows + more))), draw(st.integers(1, 5))))


@st.composite
def sum_of_squares_examples(draw: Any, size: Any = reduced) -> Example:
    return Example((draw(inputs((draw(leading), draw(size), draw(size)))),))


ROWS = [
    Row("l1", lambda *p, strength: regularization.l1(p, strength), penalised(), (regularization.L1,), l1_composed),
    Row("l2", lambda *p, strength: regularization.l2(p, strength), penalised(), (regularization.L2,), l2_composed),
]


@st.composite
def clip_scale_examples(draw: Any) -> Example:
    """Sums of squares; a state in which steps are taken; the gradients of one batch or of eight; clipped or not."""
    sums, state = draw(inputs((draw(st.sampled_from([1, 3, 40])),), positive)), Input((3,), "C", draw(seeds), positive)
    return Example((sums, state, draw(st.sampled_from([1.0, 8.0])), draw(st.sampled_from([0.0, 0.25, 1e6]))))


KERNEL_ROWS = [
    KernelRow("clip_scale", clip_scale_examples(), writes=(1,), wide=clip_scale_examples()),
    KernelRow(
        "adamw_update",
        adamw_update_examples(),
        writes=(0, 2, 3),
        large=[sizes.adamw(20001)],
        wide=adamw_update_examples(size=large_sizes),
    ),
    KernelRow("lion_update", lion_update_examples(), writes=(0, 2)),
    KernelRow("newton_schulz", newton_schulz_examples()),
    KernelRow(
        "sum_of_squares",
        sum_of_squares_examples(),
        large=[Example((Input((3, 70, 100)),))],
        wide=sum_of_squares_examples(size=large_sizes),
    ),
]
