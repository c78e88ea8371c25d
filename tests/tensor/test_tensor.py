"""The engine: graphs, gradients and their memory, modes, dtypes, and the sentences for what can't be done."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.tensor.helpers import leaf, rng
from tinygpt import ops
from tinygpt.errors import GraphFreedError, ShapeError, UsageError
from tinygpt.function import Function
from tinygpt.graph import NonFiniteError
from tinygpt.tensor import Tensor
from tinygpt.testing import check_gradients

# Accumulation -------------------------------------------------------------------------------------


def test_a_node_used_twice_gets_both_gradients() -> None:
    x = leaf(3)
    y = x.exp()
    (y * 2.0 + y * 5.0).sum().backward()
    assert np.allclose(x.grad, 7.0 * np.exp(x.data), rtol=1e-15)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x,
        lambda x: x + x,
        lambda x: x - x * 2.0,
        lambda x: x @ x.T,
        lambda x: x.T @ x,
        lambda x: ops.concatenate([x, x, x.T[:3] * 2.0]),
        lambda x: x[0] * x[1] + x[::2].sum(),
        lambda x: ops.where(x > 0, x * 2.0, x),
    ],
)
def test_one_tensor_twice_in_one_operation(function: Any) -> None:
    check_gradients(function, rng.standard_normal((3, 3)))


def test_a_diamond_of_many_paths() -> None:
    """Every level doubles the number of paths: time must follow the nodes, not the paths."""
    x = leaf(1)
    y = x
    for _ in range(60):
        y = y * 0.5 + y * 0.5
    y.sum().backward()
    assert np.allclose(x.grad, 1.0)


def test_several_backward_passes_add_up() -> None:
    x = leaf(4)
    (x * 2.0).sum().backward()
    (x * 3.0).sum().backward()
    assert np.allclose(x.grad, 5.0)
    x.zero_grad()
    assert x.grad is None


def test_an_output_that_nobody_used_counts_zero() -> None:
    x = leaf(6)
    first, _, third = ops.split(x, 2)
    (first * third).sum().backward()
    assert np.array_equal(x.grad, [*x.data[4:], 0.0, 0.0, *x.data[:2]])


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        ops.add,
        lambda a, b: (a + b) * 2.0,
        lambda a, b: ops.concatenate([a, b]),
        lambda a, b: ops.stack([a.T, b]),
        lambda a, b: a.reshape(9) + b.reshape(9),
        lambda a, b: a.sum() + b.sum(),
        lambda a, b: (a + b) + (a - b),
        lambda a, b: ops.where(np.ones((3, 3), bool), a, b) + ops.where(np.zeros((3, 3), bool), a, b),
    ],
)
def test_gradients_share_no_memory(function: Any) -> None:
    a, b = leaf(3, 3), leaf(3, 3)
    y = function(a, b)
    upstream = rng.standard_normal(y.shape)
    before = upstream.copy()
    y.backward(upstream)
    assert not np.shares_memory(a.grad, b.grad)
    kept = b.grad.copy()
    a.grad *= 0.0
    assert np.array_equal(b.grad, kept)
    assert np.array_equal(upstream, before)
    assert a.grad.flags.writeable
    assert a.grad.flags.c_contiguous


def test_the_gradient_given_is_not_kept() -> None:
    x, g = leaf(3), np.ones(3)
    x.backward(g)
    x.grad += 1.0
    assert np.array_equal(g, np.ones(3))
    y = leaf(3)
    (y + 0.0).backward(g)
    y.grad += 1.0
    assert np.array_equal(g, np.ones(3))


class TwoViews(Function):
    """Returns an array and a view of it: allowed, and no reason for two leaves to share memory."""

    def forward(self, a: Any, b: Any) -> Any:
        return a * b.T

    def backward(self, dy: Any) -> Any:
        fresh = dy * 3.0
        return fresh, fresh.T


def test_a_backward_that_returns_views_of_one_array() -> None:
    a, b = leaf(2, 2), leaf(2, 2)
    TwoViews.apply(a, b).sum().backward()
    assert not np.shares_memory(a.grad, b.grad)


class Remember(Function):
    """Saves an array of its own, and reports at its backward which others of the chain are still alive."""

    saved_by: list[weakref.ref[Any]]
    alive: list[list[bool]]

    def forward(self, x: Any) -> Any:
        array = x + 1.0
        self.saved_by.append(weakref.ref(array))
        self.save(array)
        return array * 1.0

    def backward(self, dy: Any) -> Any:
        self.alive.append([ref() is not None for ref in self.saved_by])
        return dy * 1.0


def test_saved_arrays_are_freed_as_the_pass_proceeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remember, "saved_by", [], raising=False)
    monkeypatch.setattr(Remember, "alive", [], raising=False)
    y = Remember.apply(Remember.apply(Remember.apply(leaf(2))))
    gc.disable()  # reference counts alone must do it
    try:
        y.sum().backward()
        assert Remember.alive == [[True, True, True], [True, True, False], [True, False, False]]
        assert all(ref() is None for ref in Remember.saved_by)
    finally:
        gc.enable()


def test_intermediate_tensors_die_when_nobody_needs_them() -> None:
    x = leaf(1000)
    middle = x + 1.0  # addition saves nothing
    array = weakref.ref(middle.data)
    y = middle + 1.0
    del middle
    assert array() is None
    y.sum().backward()


def test_views_share_the_memory_of_their_tensor() -> None:
    x = Tensor(rng.standard_normal((4, 6)))
    for view in (x.reshape(2, 12), x.T, x[1], x[1, 2], x[:, ::2], x[..., None], x.detach(), *ops.split(x, 2, axis=1)):
        assert np.shares_memory(view.data, x.data)
    assert x.numpy() is x.data
    assert not np.shares_memory(x[[0, 1]].data, x.data)


# Deep graphs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_graph_of_100000_nodes() -> None:
    """Neither the backward pass nor the end of the graph goes by recursion."""
    x = leaf(1)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1.0
    del y
    y = x
    for _ in range(100_000):
        y = y * 1.0
    del y  # never had a backward pass: the whole chain goes at once


# A second backward --------------------------------------------------------------------------------


def test_a_second_backward_says_that_the_graph_was_freed() -> None:
    x = leaf(3)
    y = x.exp()
    loss = (y * y).sum()
    loss.backward()
    with pytest.raises(GraphFreedError, match=r"were freed by an earlier backward\(\).*retain_graph=True"):
        loss.backward()
    with pytest.raises(GraphFreedError):
        y.sum().backward()  # another way into the same graph
    assert np.allclose(x.grad, 2.0 * np.exp(2.0 * x.data))  # refused before anything was added


def test_retain_graph_allows_it() -> None:
    x = leaf(3)
    y = x.exp().tanh().sum()  # one path to x: each pass adds one number to it, and 2 g and 3 g round alike
    y.backward(retain_graph=True)
    once = x.grad.copy()
    y.backward(retain_graph=True)
    assert np.array_equal(x.grad, 2.0 * once)
    y.backward()
    assert np.array_equal(x.grad, 3.0 * once)
    with pytest.raises(GraphFreedError):
        y.backward()


# Modes -------------------------------------------------------------------------------------------


def test_no_grad_and_detach() -> None:
    x = leaf(3)
    with tg.no_grad():
        y = x * 2.0
    assert y.node is None
    assert not y.requires_grad
    assert (x * x.detach()).requires_grad
    (x * x.detach()).sum().backward()
    assert np.array_equal(x.grad, x.data)
    with pytest.raises(RuntimeError), tg.no_grad():
        raise RuntimeError
    assert (x * 2.0).requires_grad  # the mode came back


def test_no_grad_is_of_one_thread() -> None:
    x, seen = leaf(3), []

    def other() -> None:
        seen.append((x * 2.0).requires_grad)

    with tg.no_grad():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        seen.append((x * 2.0).requires_grad)
    assert seen == [True, False]


def test_detect_anomaly_names_the_operation_and_the_pass() -> None:
    x = Tensor(np.array([0.0, 1.0]), requires_grad=True)
    with tg.detect_anomaly():
        with pytest.raises(NonFiniteError, match="Log is the first operation to produce inf in its forward pass"):
            x.log()
        with pytest.raises(NonFiniteError, match="Sqrt is the first operation to produce inf in its backward pass"):
            x.sqrt().sum().backward()
    assert np.isneginf(x.log().data[0])


# Values ------------------------------------------------------------------------------------------


def test_backward_needs_a_gradient_of_the_right_shape() -> None:
    x = leaf(2, 3)
    with pytest.raises(ShapeError, match=r"needs a single number, this tensor has shape \(2, 3\)"):
        (x * 2.0).backward()
    with pytest.raises(ShapeError, match=r"grad has shape \(3,\), the tensor has \(2, 3\)"):
        (x * 2.0).backward(np.ones(3))
    with pytest.raises(UsageError, match="does not require a gradient"):
        Tensor(np.ones(())).backward()
    (x * 2.0).backward(Tensor(np.ones((2, 3), np.float32)))
    assert np.array_equal(x.grad, np.full((2, 3), 2.0))
    assert x.grad.dtype == np.float64


def test_results_without_axes_are_arrays() -> None:
    x = leaf()
    y = (x * 2.0).sum().exp()
    y.backward()
    assert isinstance(y.data, np.ndarray)
    assert isinstance(x.grad, np.ndarray)
    x.grad += 1.0
    assert isinstance(x.grad, np.ndarray)


def test_tensors_compare_by_element_and_can_be_keys() -> None:
    x, y = leaf(2), leaf(2)
    assert {x: 1, y: 2}[x] == 1
    assert len({x, y, x}) == 2
    a, b = tg.tensor([1, 2, 3]), tg.tensor([1, 0, 3])
    for other in (b, b.data, [1, 0, 3]):
        assert (a == other).data.tolist() == [True, False, True]
        assert (a != other).data.tolist() == [False, True, False]
    assert (b.data == a).data.tolist() == [True, False, True]
    assert (a == 2).dtype == bool
    assert (a == tg.tensor([[1], [2]])).shape == (2, 3)
    assert float((a == b).numpy().mean()) == 2 / 3  # an accuracy
    assert not (x == y).requires_grad
    assert (a == None) is False  # noqa: E711
    assert a != "text"
    with pytest.raises(ShapeError, match="do not fit"):
        a == tg.tensor([1, 2])  # noqa: B015
    with pytest.raises(ShapeError, match=r"shape \(3,\) is ambiguous.*any\(x is y"):
        bool(a == b)
    with pytest.raises(ShapeError, match=r"truth value .* is ambiguous"):
        x in [y, x]  # noqa: B015
    less = Tensor(np.array([1.0, 3.0])) < 2.0
    assert less.dtype == bool
    assert less.data.tolist() == [True, False]
    assert (Tensor(np.array(2.0)) >= 2).item() is True
    assert not (x > y).requires_grad
