"""Single operations where they are easily wrong, and the sentence that each mistake gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygpt as tg
from tinygpt import ops
from tinygpt.errors import DtypeError, RangeError, ShapeError, UsageError
from tinygpt.tensor import Tensor

rng = np.random.default_rng(0)
START = rng.bit_generator.state


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order() -> None:
    """A test's numbers do not depend on the tests before it, which are others in each worker process."""
    rng.bit_generator.state = START


def leaf(*shape: int) -> Tensor:
    return Tensor(np.asarray(rng.standard_normal(shape)), requires_grad=True)


# Edges -------------------------------------------------------------------------------------------


def test_ties_in_max_and_min_share_the_gradient() -> None:
    for sign in (1.0, -1.0):
        x = Tensor(sign * np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
        (x.max if sign > 0 else x.min)(axis=1).backward(np.array([1.0, 6.0]))
        assert np.array_equal(x.grad, [[0.0, 0.5, 0.5], [2.0, 2.0, 2.0]])


def test_abs_at_its_kink() -> None:
    x = Tensor(np.array([0.0, -0.0, -2.0]), requires_grad=True)
    x.abs().backward(np.array([1.0, 1.0, 3.0]))
    assert np.array_equal(x.grad, [0.0, 0.0, -3.0])


def test_relu_and_powers_at_their_kinks() -> None:
    x = Tensor(np.array([0.0, -1.0, 2.0]), requires_grad=True)
    x.relu().backward(np.array([np.inf, np.inf, 1.0]))
    assert np.array_equal(x.grad, [0.0, 0.0, 1.0])
    zero, power = Tensor(np.zeros(3), requires_grad=True), Tensor(np.array([0.0, 1.0, 2.0]), requires_grad=True)
    (zero**power).sum().backward()
    assert np.array_equal(zero.grad, [0.0, 1.0, 0.0])
    assert np.array_equal(power.grad, [0.0, 0.0, 0.0])


def test_where_lets_no_nan_through_from_the_side_not_taken() -> None:
    x = Tensor(np.array([-1.0, 4.0]), requires_grad=True)
    y = ops.where(x > 0, x.sqrt(), x)
    assert np.array_equal(y.data, [-1.0, 2.0])
    upstream = np.array([np.inf, 1.0])
    a, b = leaf(2), leaf(2)
    ops.where(np.array([True, False]), a, b).backward(upstream)
    assert np.array_equal(a.grad, [np.inf, 0.0])
    assert np.array_equal(b.grad, [0.0, 1.0])


@pytest.mark.parametrize(
    "shapes",
    [((2, 3, 4), (4, 0)), ((2, 0, 4), (4, 3)), ((2, 3, 0), (0, 5)), ((2, 3, 0), (2, 0, 5)), ((0,), (0,)),
     ((2, 3, 0), (0,)), ((0,), (0, 3)), ((4,), (2, 4, 0)), ((2, 0, 4), (4,)), ((2, 3, 4), (1, 4, 0))],
)  # fmt: skip
def test_products_of_matrices_without_elements(shapes: Any) -> None:
    a, b = (leaf(*shape) for shape in shapes)
    y = a @ b
    assert np.array_equal(y.data, a.data @ b.data)
    y.sum().backward()
    assert np.array_equal(a.grad, np.zeros(a.shape))
    assert np.array_equal(b.grad, np.zeros(b.shape))


def test_where_takes_a_plain_true_or_false() -> None:
    a, b = leaf(2), leaf(2)
    assert np.array_equal(ops.where(True, a, b).data, a.data)
    assert np.array_equal(ops.where(False, a, 0.0).data, [0.0, 0.0])


def test_sigmoid_keeps_its_digits_at_both_ends() -> None:
    y = Tensor(np.array([-1000.0, -700.0, 0.0, 700.0, 1000.0])).sigmoid().data
    assert np.allclose(y, [0.0, np.exp(-700.0), 0.5, 1.0, 1.0], rtol=1e-15, atol=0.0)


def test_a_long_float32_sum_keeps_its_digits() -> None:
    x = np.full(10_000_000, 0.1, np.float32)[:, None]
    assert abs(Tensor(x).sum(axis=0).item() - 1e7 * float(np.float32(0.1))) <= 0.1
    assert abs(Tensor(x).mean().item() - 0.1) < 1e-8


def test_repeated_indices_accumulate() -> None:
    x = leaf(4, 2)
    x[np.array([1, 1, -3, 0])].backward(np.ones((4, 2)))
    assert np.array_equal(x.grad[:, 0], [1.0, 3.0, 0.0, 0.0])


def test_transpose_takes_two_axes_or_all() -> None:
    x = Tensor(np.zeros((2, 3, 4)))
    assert x.T.shape == (4, 3, 2)
    assert x.transpose(0, -1).shape == (4, 3, 2)
    assert x.transpose(1, 2).shape == (2, 4, 3)
    assert x.transpose(1, 2, 0).shape == x.transpose((1, 2, 0)).shape == (3, 4, 2)
    assert x.reshape(-1, 4).shape == x.reshape((6, -1)).shape == (6, 4)
    assert [piece.shape for piece in x.split(3, axis=-1)] == [(2, 3, 3), (2, 3, 1)]


# Mistakes ----------------------------------------------------------------------------------------

X = np.zeros((2, 3))
MISTAKES: list[tuple[Any, type[UsageError], str]] = [
    (lambda x: x + np.ones(4), ShapeError, r"add: shapes \(2, 3\) and \(4,\) do not fit"),
    (lambda x: ops.where(x, x, x), DtypeError, "where: the condition must be boolean, not float64"),
    (lambda x: ops.where(x > 0, np.ones(2), x), ShapeError, "where: shapes"),
    (lambda x: x @ x, ShapeError, r"matmul: .*3 and 2, from shapes \(2, 3\) and \(2, 3\)"),
    (lambda x: x @ 2.0, ShapeError, r"matmul: both operands need an axis.*use \*"),
    (lambda x: np.zeros((5, 3, 2)) @ x[None][[0, 0]], ShapeError, "matmul: the leading axes"),
    (lambda x: (x > 0) @ x.T, DtypeError, "matmul: booleans"),
    (lambda x: x.sum(axis=2), RangeError, "sum: axis 2 does not exist in a tensor of 2 axes"),
    (lambda x: x.sum(axis=(0, -2)), ShapeError, "sum: .* names an axis twice"),
    (lambda x: x.mean(axis="rows"), DtypeError, "mean: an axis is an integer, not 'rows'"),
    (lambda x: x[:0].mean(), ShapeError, "mean: .* has no elements"),
    (lambda x: x[:0].max(axis=0), ShapeError, "max: .* has no elements"),
    (lambda x: x[:1].var(axis=0), ShapeError, "var: 1 elements .* correction=1"),
    (lambda x: tg.tensor([1, 2]).mean(), DtypeError, "mean: x must be float32 or float64, not int64"),
    (lambda x: tg.tensor([1, 2]).exp(), DtypeError, "exp: x must be float32 or float64"),
    (lambda x: x.reshape(4, 2), ShapeError, r"reshape: 6 elements of shape \(2, 3\) do not fit into shape \(4, 2\)"),
    (lambda x: x.reshape(-1, -1), ShapeError, "reshape"),
    (lambda x: x.reshape(-2, -3), ShapeError, "reshape"),
    (lambda x: x[:0].reshape(0, -1), ShapeError, "reshape"),
    (lambda x: x.reshape(1.5, 4), DtypeError, "reshape: takes integers"),
    (lambda x: x.transpose(0, 2), RangeError, "transpose: axis 2"),
    (lambda x: x.transpose((0, 0)), ShapeError, "transpose: .* is not an order"),
    (lambda x: x[5], RangeError, r"getitem: 5 does not index a tensor of shape \(2, 3\)"),
    (lambda x: x[0, 0, 0], RangeError, "getitem"),
    (lambda x: x[np.ones(3, bool)], RangeError, "getitem"),
    (lambda x: x[0.5], DtypeError, "getitem: an index is made of integers"),
    (lambda x: x["a"], DtypeError, "getitem"),
    (lambda x: x[[[0], [0, 1]]], DtypeError, "getitem: .* rows differ"),
    (lambda x: x[::0], UsageError, "getitem: .*step"),
    (lambda x: x[:"a"], UsageError, "getitem"),
    (lambda x: ops.concatenate([]), ShapeError, "concatenate: needs at least one tensor"),
    (lambda x: ops.concatenate(x), DtypeError, "concatenate: takes a list or tuple"),
    (lambda x: ops.concatenate([x, x.T]), ShapeError, r"tensor 0 has \(2, 3\) and tensor 1 has \(3, 2\)"),
    (lambda x: ops.concatenate([x.sum()]), ShapeError, "use stack"),
    (lambda x: ops.stack([x, x[0]]), ShapeError, "stack: shapes must be equal"),
    (lambda x: x.split([1, 2]), ShapeError, r"split: sizes \[1, 2\] do not add up to axis 0"),
    (lambda x: x.split(0), ShapeError, "split"),
    (lambda x: x.split(1.5), DtypeError, "split: sizes must be an integer"),
    (lambda x: ops.linear(x, x), ShapeError, "linear: the last axis of x must have 2 elements"),
    (lambda x: ops.linear(x, x.T, x[0]), ShapeError, r"linear: bias must have shape \(2,\)"),
    (lambda x: ops.linear(x, x[0]), ShapeError, "linear: weight must have shape"),
    (lambda x: ops.linear(x, tg.tensor(X.T, dtype="float32")), DtypeError, "linear: .*float32"),
    (lambda x: -(x > 0), DtypeError, "neg: booleans"),
    (lambda x: (x > 0) - (x > 0), DtypeError, "sub: booleans"),
    (lambda x: tg.tensor([2]) ** -1, UsageError, "pow: integers"),
    (lambda x: x + "text", DtypeError, "tensor holds"),
    (lambda x: x < np.ones(4), ShapeError, "lt: shapes"),
]


@pytest.mark.parametrize(("mistake", "error", "sentence"), MISTAKES)
def test_mistakes_get_a_sentence(mistake: Any, error: type[UsageError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        mistake(Tensor(X))


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
anything = st.one_of(st.integers(-4, 4), st.none(), st.floats(allow_nan=False), st.text(max_size=2), shapes)


@pytest.mark.slow
@settings(max_examples=400)
@given(data=st.data())
def test_random_arguments_work_or_get_a_sentence(data: Any) -> None:
    """Whatever comes: a result, or a UsageError. Never another exception."""
    a, b = Tensor(np.ones(data.draw(shapes)), requires_grad=True), Tensor(np.ones(data.draw(shapes)))
    argument, axis = data.draw(anything), data.draw(anything)
    operation = data.draw(
        st.sampled_from(
            [
                lambda: a + b,
                lambda: a**b,
                lambda: a @ b,
                lambda: ops.where(a > 0, a, b),
                lambda: a.sum(axis=axis),
                lambda: a.mean(axis=axis),
                lambda: a.var(axis=axis),
                lambda: a.max(axis=axis),
                lambda: a.reshape(argument),
                lambda: a.transpose(argument),
                lambda: a.transpose(argument, axis),
                lambda: a[argument],
                lambda: a[argument, axis],
                lambda: ops.concatenate([a, b], axis=axis),
                lambda: ops.stack([a, b], axis=axis),
                lambda: a.split(argument, axis=axis),
                lambda: ops.linear(a, b),
                lambda: ops.linear(a, b, a),
                lambda: a * argument,
                lambda: a < argument,
                lambda: ops.layer_norm(a, b),
            ]
        )
    )
    try:
        result = operation()
    except UsageError as error:
        sentence = str(error)
        assert len(sentence) > 20
        assert "\n" not in sentence
        return
    for y in result if isinstance(result, tuple) else (result,):
        assert isinstance(y, Tensor)
        if y.requires_grad:
            y.backward(np.ones(y.shape), retain_graph=True)
