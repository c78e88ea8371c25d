"""What is changed between the forward and the backward pass: noticed, harmless, or copied."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import changes, nn, ops, optim
from tinygpt.errors import ShapeError, UsageError
from tinygpt.tensor import Tensor

CHANGED = r"backward\(\) reached \w+, which saved an array of shape .* that was changed since"


def leaf(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Tensor:
    return Tensor(np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype), requires_grad=True)


# Parameters ---------------------------------------------------------------------------------------


def step_of(make: Callable[[Tensor], optim.optimizer.Optimizer]) -> Callable[[Tensor], None]:
    return lambda p: make(p).step()


def under_no_grad(change: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    def changed(p: Tensor) -> None:
        with tg.no_grad():
            change(p)

    return changed


def subtract(p: Tensor) -> None:
    p -= 0.1 * p.grad


def subtract_from_data(p: Tensor) -> None:
    p.data -= 0.1 * p.grad


def load(p: Tensor) -> None:
    module = nn.Module()
    module.p = nn.Parameter(np.zeros(1, np.float32))  # type: ignore[attr-defined]
    module.p.data = p.data  # type: ignore[attr-defined]
    module.load_state_dict({"p": np.ones(p.shape, np.float32)})


def assign_and_say_so(p: Tensor) -> None:
    p.data[...] = 0.0
    p.mark_changed()


CHANGES: dict[str, Callable[[Tensor], None]] = {
    "SGD": step_of(lambda p: optim.SGD([p], lr=0.1)),
    "AdamW": step_of(lambda p: optim.AdamW([p], lr=0.1)),
    "p -= ...": under_no_grad(subtract),
    "p.data -= ...": subtract_from_data,
    "load_state_dict": load,
    "mark_changed": assign_and_say_so,
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: (x @ p) @ p,
        lambda p, x: x @ p.T,  # of which the product saves a view
        lambda p, x: ops.layer_norm(x @ p.detach(), p[0]),  # saved, though no gradient goes there
        lambda p, x: ops.linear(ops.gelu(p), p),
    ],
    ids=["itself", "a view", "detached", "recomputed"],
)
def test_a_parameter_that_is_changed_before_backward_is_noticed(how: str, function: Any) -> None:
    p, x = leaf(3, 3), leaf(2, 3, seed=1)
    loss = function(p, x).sum()
    loss.backward(retain_graph=True)
    before = x.grad.copy() if x.grad is not None else None
    CHANGES[how](p)
    with pytest.raises(UsageError, match=CHANGED + r", by optimizer\.step\(\)"):
        loss.backward()
    assert before is None or np.array_equal(x.grad, before)  # refused before anything was added
    function(p, x).sum().backward()  # a new forward pass is all it takes


def test_a_change_that_no_operation_depends_on_is_none_of_its_business() -> None:
    p, q, x = leaf(3), leaf(3, seed=1), leaf(3, seed=2)
    loss = ((p + x) * q).sum()  # an addition saves nothing
    loss.backward(retain_graph=True)
    optim.SGD([p], lr=0.1).step()
    p.zero_grad()
    loss.backward(retain_graph=True)
    assert np.array_equal(p.grad, q.data)
    optim.SGD([q], lr=0.1).step()
    with pytest.raises(UsageError, match=CHANGED):
        loss.backward()


def test_two_models_take_turns() -> None:
    """The clock is common, the arrays are not."""
    p, q = leaf(3), leaf(3, seed=1)
    optimizers = [optim.SGD([t], lr=0.1) for t in (p, q)]
    losses = [(t * t).sum() for t in (p, q)]
    losses[0].backward()
    optimizers[0].step()
    losses[1].backward()
    assert np.array_equal(q.grad, 2 * q.data)


def test_an_array_of_another_place_is_no_change() -> None:
    """p.data = array leaves the array that was saved as it was: the gradient is of the forward pass that ran."""
    p = leaf(3)
    old = p.data
    loss = (p * p).sum()
    p.data = np.zeros(3, np.float32)
    loss.backward()
    assert np.array_equal(p.grad, 2 * old)


@pytest.mark.slow
def test_what_is_known_of_changes_goes_with_the_arrays() -> None:
    gc.collect()
    before = len(changes._changes)
    parameters = [leaf(3) for _ in range(5)]
    for p in parameters:
        p.data *= 2
    assert len(changes._changes) == before + 5
    del p, parameters
    assert len(changes._changes) == before


# Recomputable results -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["new array", "in place", "elements, and said so"])
@pytest.mark.parametrize(
    "make",
    [
        lambda x, w: x.gelu(),
        lambda x, w: ops.gelu(x, "none"),
        lambda x, w: ops.bias_gelu(x, w),
        lambda x, w: ops.layer_norm(x, w),
        lambda x, w: ops.residual_layer_norm(x, x, w)[1],
    ],
    ids=["gelu", "gelu erf", "bias_gelu", "layer_norm", "residual_layer_norm"],
)
def test_the_next_operation_saves_the_array_that_it_was_given(make: Any, how: str) -> None:
    x, w, weight = leaf(4, 3), leaf(3, seed=1), leaf(3, 2, seed=2)
    h = make(x, w)
    mask = np.array([1, 0, 2], np.float32)
    if how == "in place":
        h.data *= mask
    elif how == "new array":
        h.data = h.data * mask
    else:
        h.data[...] *= mask
        h.mark_changed()
    used, dy = h.data.copy(), leaf(4, 2, seed=3).data
    ops.linear(h, weight).backward(dy)
    assert np.allclose(weight.grad, used.T @ dy, rtol=1e-5)


def test_the_data_of_a_tensor_is_an_array_that_it_can_have() -> None:
    p = leaf(2, 3)
    for wrong in ([1.0], tg.tensor([1.0]), None):
        with pytest.raises(UsageError, match="a Tensor holds an array of NumPy or CuPy, not"):
            p.data = wrong
    with pytest.raises(UsageError, match="the array must be floating, not int64"):
        p.data = np.arange(6).reshape(2, 3)
    loss = (p * 2.0).sum()
    p.data = np.zeros(5, np.float32)
    with pytest.raises(
        ShapeError, match=r"gradient of shape \(2, 3\) for input 0 of shape \(5,\).*must not be replaced"
    ):
        loss.backward()


# Buffers that are filled anew ---------------------------------------------------------------------


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, ids: ops.embedding(x, ids) ** 2,
        lambda x, ids: x[ids] ** 2,
        lambda x, ids: x[ids, [0, 1, 1]] ** 2,
        lambda x, ids: ops.cross_entropy(x[:3], ids),
        lambda x, ids: ops.linear_cross_entropy(x[:3] @ x[:3].T, x[:, :3], ids),
        lambda x, ids: ops.binary_cross_entropy(x[0, :3], ids),
    ],
    ids=["embedding", "getitem", "getitem of two", "cross_entropy", "linear_cross_entropy", "binary_cross_entropy"],
)
@pytest.mark.parametrize("retain", [False, True])
def test_buffers_of_ids_and_targets_may_be_filled_anew(
    function: Any, dtype: Any, as_tensor: bool, retain: bool
) -> None:
    x, again = leaf(4, 4), leaf(4, 4)
    ids = np.array([0, 1, 1], dtype)
    function(again, ids.copy()).sum().backward()
    y = function(x, tg.tensor(ids) if as_tensor else ids).sum()
    if retain:
        y.backward(retain_graph=True)
        x.zero_grad()
    ids[...] = 0
    y.backward()
    assert np.array_equal(x.grad, again.grad)


def test_a_mask_may_be_filled_anew() -> None:
    x, mask = leaf(3), np.array([True, False, True])
    picked, chosen = x[mask].sum(), ops.where(mask, x, 0.0).sum()
    mask[...] = False
    picked.backward()
    chosen.backward()
    assert np.array_equal(x.grad, [2, 0, 2])


# In place -----------------------------------------------------------------------------------------


def in_place(p: Tensor, sign: str, other: Any) -> Tensor:
    names = {"p": p, "other": other}
    exec(f"p {sign} other", names)
    return names["p"]


@pytest.mark.parametrize(
    ("sign", "expected"),
    [("+=", [5.0, 6.0]), ("-=", [1.0, 2.0]), ("*=", [6.0, 8.0]), ("/=", [1.5, 2.0]), ("**=", [9.0, 16.0])],
)
@pytest.mark.parametrize("other", [2, 2.0, np.full(2, 2.0), tg.tensor([2.0]), np.float64(2)])
def test_a_parameter_is_changed_in_place_under_no_grad(sign: str, expected: list[float], other: Any) -> None:
    p = Tensor(np.array([3, 4], np.float32), requires_grad=True)
    array = p.data
    with tg.no_grad():
        assert in_place(p, sign, other) is p
    assert p.data is array
    assert p.dtype == np.float32
    assert p.requires_grad
    assert np.array_equal(array, expected)


@pytest.mark.parametrize("sign", ["+=", "-=", "*=", "/=", "**="])
def test_outside_no_grad_that_is_refused(sign: str) -> None:
    with pytest.raises(UsageError, match=r"can't be changed in place outside of tinygpt\.no_grad\(\)"):
        in_place(leaf(2), sign, 2.0)


def test_what_can_not_be_done_in_place_gets_a_sentence() -> None:
    p = leaf(2)
    with tg.no_grad():
        with pytest.raises(ShapeError, match=r"-=: a tensor of shape \(2,\) can't hold a result of \(3, 2\) in place"):
            p -= np.ones((3, 2), np.float32)
        with pytest.raises(ShapeError, match="do not fit"):
            p -= np.ones(3, np.float32)
        with pytest.raises(UsageError, match=r"@=.*write p\.data\[\.\.\.\]"):
            p @= np.ones((2, 2), np.float32)
        fixed = Tensor(np.broadcast_to(np.float32(1), (2,)), requires_grad=True)
        with pytest.raises(UsageError, match="read-only"):
            fixed -= 1.0


def test_results_and_constants_are_added_to_by_name() -> None:
    """total += loss is total = total + loss, which the graph knows; nobody else sees another value."""
    x = leaf(3)
    total, first = tg.tensor(0.0), None
    for _ in range(4):
        total += x.sum()
        first = total if first is None else first
    total.backward()
    assert np.array_equal(x.grad, [4, 4, 4])
    with tg.no_grad():
        constant = same = tg.tensor([1.0, 2.0])
        constant -= 1.0
    assert constant is not same
    assert same.data.tolist() == [1.0, 2.0]


def test_gradient_descent_by_hand_trains() -> None:
    w = leaf(3, 2, seed=5)
    x, target = leaf(8, 3, seed=6).detach(), leaf(8, 2, seed=7).detach()
    losses = []
    for _ in range(30):
        loss = ((x @ w - target) ** 2).mean()
        loss.backward()
        losses.append(loss.item())
        with tg.no_grad():
            for p in [w]:
                p -= 0.3 * p.grad
                p.zero_grad()
    assert losses[-1] < 0.6 * losses[0]
