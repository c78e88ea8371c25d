"""Every operation against every check. The rows are in `cases/__init__.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinygpt.ops
import tinygpt.optim  # noqa: F401  every operation is imported
from tests.ops.cases import ROWS
from tests.ops.checks import as_tuple, assert_close, call, check_against_composed, random_upstream, values_of
from tests.ops.drawing import Row, some_examples
from tinygpt.backends import get
from tinygpt.function import Function
from tinygpt.graph import no_grad
from tinygpt.kernel import use_kernels
from tinygpt.tensor import Tensor
from tinygpt.testing import backward_of, check_gradients

every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


@every_row
@given(data=st.data())
def test_gradients(row: Row, data: Any) -> None:
    example = data.draw(row.examples)
    check_gradients(call(row, example), *example.make(), seed=data.draw(st.integers(0, 99)))


@pytest.mark.skipif(get("numpy").extension() is None, reason="test_gradients has the reference bodies")
@every_row
@settings(max_examples=10)
@given(data=st.data())
def test_gradients_of_the_references(row: Row, data: Any) -> None:
    example = data.draw(row.examples)
    with use_kernels("reference"):
        check_gradients(call(row, example), *example.make(), seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("row", [row for row in ROWS if row.composed], ids=lambda row: row.name)
@given(data=st.data())
def test_fused_equals_composed(row: Row, data: Any) -> None:
    check_against_composed(row, data.draw(row.examples))


@pytest.mark.slow
@every_row
@given(data=st.data())
def test_backward_is_linear_in_dy(row: Row, data: Any) -> None:
    example = data.draw(row.examples)
    arrays = example.make()
    first, second = random_upstream(row, example, arrays, 1), random_upstream(row, example, arrays, 2)
    mixed = [2.0 * a - 3.0 * b for a, b in zip(first, second, strict=True)]
    from_first, from_second, from_mixed = (
        backward_of(call(row, example), arrays, upstream) for upstream in (first, second, mixed)
    )
    expected = [None if a is None else 2.0 * a - 3.0 * b for a, b in zip(from_first, from_second, strict=True)]
    assert_close(from_mixed, expected, 1e-12)


@pytest.mark.slow
@every_row
@given(data=st.data())
def test_two_calls_are_identical_and_change_nothing(row: Row, data: Any) -> None:
    example = data.draw(row.examples)
    arrays = example.make()
    upstream = random_upstream(row, example, arrays)
    before = [a.copy() for a in (*arrays, *upstream)]
    values, gradients = values_of(row, example, arrays), backward_of(call(row, example), arrays, upstream)
    again, gradients_again = values_of(row, example, arrays), backward_of(call(row, example), arrays, upstream)
    for a, b in zip((*values, *gradients), (*again, *gradients_again), strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
    for a, b in zip((*arrays, *upstream), before, strict=True):
        assert np.array_equal(a, b)


@every_row
@given(data=st.data())
def test_float32_is_close_to_float64(row: Row, data: Any) -> None:
    """The dtype comes through, and the results agree to about the precision of float32.

    But for LayerNorm of one channel: its gradient is 0, and what is left of it is a rounding times 1 / sqrt(eps).
    """
    example = data.draw(row.examples)
    single = example.make(np.float32)
    assume("layer_norm" not in row.name or single[0].shape[-1] > 1)
    double = [a.astype(np.float64) if a.dtype == np.float32 else a for a in single]
    values, expected = values_of(row, example, single), values_of(row, example, double)
    assert all(
        v.dtype == (np.float32 if e.dtype == np.float64 else e.dtype) for v, e in zip(values, expected, strict=True)
    )
    assert_close(values, expected, 2e-5)
    upstream = [u.astype(np.float32) for u in random_upstream(row, example, single)]
    gradients = backward_of(call(row, example), single, upstream)
    assert all(g is None or g.dtype == np.float32 for g in gradients)
    assert_close(gradients, backward_of(call(row, example), double, [u.astype(np.float64) for u in upstream]), 2e-5)


@pytest.mark.slow
@every_row
@given(data=st.data())
def test_layout_does_not_matter(row: Row, data: Any) -> None:
    example = data.draw(row.examples)
    arrays = example.make()
    plain = [np.array(a, order="C") for a in arrays]
    assert_close(values_of(row, example, arrays), values_of(row, example, plain), 1e-12)
    upstream = random_upstream(row, example, arrays)
    expected = backward_of(call(row, example), plain, upstream)
    assert_close(backward_of(call(row, example), arrays, upstream), expected, 1e-12)
    turned = [np.array(u, order="F") for u in upstream]  # a gradient may come in any layout as well
    assert_close(backward_of(call(row, example), arrays, turned), expected, 1e-12)


@pytest.mark.slow
@every_row
@given(data=st.data())
def test_no_grad_makes_no_graph(row: Row, data: Any) -> None:
    example = data.draw(row.examples)
    arrays = example.make()
    tensors = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    with no_grad():
        outputs = as_tuple(row.function(*tensors, **example.options))
    assert all(y.node is None and not y.requires_grad for y in outputs)


@pytest.mark.slow
@every_row
@given(data=st.data())
def test_each_input_alone(row: Row, data: Any) -> None:
    """With one input that requires a gradient, its gradient is what it was with all of them."""
    example = data.draw(row.examples)
    arrays = example.make()
    upstream = random_upstream(row, example, arrays)
    together = backward_of(call(row, example), arrays, upstream)
    for index, array in enumerate(arrays):
        if array.dtype.kind != "f":
            continue

        def alone(tensor: Tensor, index: int = index) -> Any:
            constants = [Tensor(a) for a in arrays]
            return row.function(*constants[:index], tensor, *constants[index + 1 :], **example.options)

        assert_close(backward_of(alone, [array], upstream), [together[index]], 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [row for row in ROWS if row.takes_nan], ids=lambda row: row.name)
@given(data=st.data())
def test_nan_and_infinity_pass_through(row: Row, bad: float, data: Any) -> None:
    """A NaN in the first input is seen in the result, and an infinity raises no error or warning."""
    example = data.draw(row.examples)
    arrays = [np.array(a) for a in example.make()]
    if arrays[0].size == 0:
        return
    arrays[0][...] = bad
    values = values_of(row, example, arrays)
    if np.isnan(bad):
        assert all(y.size == 0 or np.isnan(y).any() for y in values)
    backward_of(call(row, example), arrays, random_upstream(row, example, arrays))


def every_function() -> list[type[Function]]:
    found, stack = [], [Function]
    while stack:
        for subclass in stack.pop().__subclasses__():
            stack.append(subclass)
            if subclass.__module__.startswith(("tinygpt.ops.", "tinygpt.optim.")):
                found.append(subclass)
    return found


def test_every_operation_has_a_row() -> None:
    covered = {node for row in ROWS for node in row.nodes}
    assert [node.__qualname__ for node in every_function() if node not in covered] == []


@pytest.mark.slow
def test_rows_name_the_nodes_they_make() -> None:
    """Every class a row lists is really in the graph that its function makes."""
    for row in ROWS:
        for count in (3, 8, 30):  # a few examples show most; drawing them is what takes time
            seen = nodes_made(row, count)
            if set(row.nodes) <= seen:
                break
        assert set(row.nodes) <= seen, f"{row.name}: {set(row.nodes) - seen} never made"


def nodes_made(row: Row, count: int) -> set[type[Function]]:
    seen: set[type[Function]] = set()
    for example in some_examples(row.examples, count):
        tensors = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in example.make()]
        stack = [y.node for y in as_tuple(row.function(*tensors, **example.options)) if y.node is not None]
        while stack:
            node = stack.pop()
            seen.add(type(node))
            stack.extend(parent for parent in node.parents if isinstance(parent, Function))
    return seen
