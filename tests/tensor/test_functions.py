"""A user's own Functions: what they may return, what they may not, outputs that nobody used; and what ends a mistake
in a sentence: chains, copies, threads, NaNs that came from outside."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import nn, ops, optim
from tinygpt.errors import DtypeError, UsageError
from tinygpt.function import Function
from tinygpt.graph import NonFiniteError
from tinygpt.tensor import Tensor


def leaf(*shape: int, dtype: Any = np.float32) -> Tensor:
    return Tensor(np.asarray(np.random.default_rng(0).standard_normal(shape)).astype(dtype), requires_grad=True)


class Returning(Function):
    """x -> made(x), whose gradient is given(dy)."""

    def forward(self, x: Any, made: Any = lambda x: x * 1.0, given: Any = lambda dy: dy) -> Any:
        self.given = given
        return made(x)

    def backward(self, *dys: Any) -> Any:
        return self.given(*dys)


# What they return ---------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_that_is_used_several_times(times: int, dtype: Any) -> None:
    x = leaf(2, 3, dtype=dtype)
    s = (x * 2.0).sum()
    total = s
    for _ in range(times - 1):
        total = total + s
    total.backward()
    assert np.array_equal(x.grad, np.full((2, 3), 2.0 * times))


def test_lists_count_as_tuples_and_numbers_as_arrays() -> None:
    x = leaf(3, dtype=np.float64)
    a, b = Returning.apply(x, made=lambda x: [x * 2.0, x * 3.0], given=lambda da, db: [2.0 * da + 3.0 * db])
    (a + b).sum().backward()
    assert np.array_equal(x.grad, np.full(3, 5.0))
    for number in (7.0, 7, np.float32(7)):
        y = Returning.apply(leaf(2), made=lambda x, n=number: n, given=lambda dy: np.ones(2))
        assert (type(y.data), y.dtype, y.item()) == (np.ndarray, np.float32, 7.0)
        assert y.requires_grad
    number = leaf()
    for factor in (2.0, 3, np.float64(4)):
        number.zero_grad()
        Returning.apply(number, given=lambda dy, f=factor: f).backward()
        assert number.grad == factor
        assert number.grad.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"made": lambda x: None}, r"Returning\.forward: must return an array or a tuple of arrays, not NoneType"),
        ({"made": lambda x: [1.0, 2.0]}, "not float in a tuple or list"),
        ({"made": lambda x: Tensor(x)}, r"not Tensor: it works on plain arrays"),
        ({"made": lambda x: "text"}, "not str"),
        ({"given": lambda dy: None}, r"Returning\.backward returned no gradient for input 0, which needs one"),
        ({"given": lambda dy: (dy, dy)}, "returned 2 gradients for 1 inputs"),
        ({"given": lambda dy: [1.0, 2.0, 3.0]}, "returned 3 gradients for 1 inputs"),
        ({"given": lambda dy: dy[:2]}, r"gradient of shape \(2,\) for input 0 of shape \(3,\)"),
        ({"given": lambda dy: 1.0}, r"gradient of shape \(\) for input 0"),
        ({"given": lambda dy: Tensor(dy)}, "the gradient of input 0 must be an array, not Tensor"),
        ({"given": lambda dy: "text"}, "must be an array, not str"),
    ],
)
def test_what_a_function_can_not_return(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Returning.apply(leaf(3), **options).sum().backward()


@pytest.mark.parametrize("value", [np.ones(3), np.float32(1), 1.0, [1.0], None, "x"])
def test_a_function_is_applied_to_tensors(value: Any) -> None:
    for inputs in ([value], [leaf(3), value]):
        place = len(inputs) - 1
        with pytest.raises(
            DtypeError, match=rf"Returning\.apply: input {place} must be a tensor, not {type(value).__name__}"
        ):
            Returning.apply(*inputs)
    with pytest.raises(UsageError, match="at least one tensor"):
        Returning.apply()


def test_what_is_no_array_makes_no_tensor() -> None:
    for value in ([1.0], 1.0, "x", None):
        with pytest.raises(DtypeError, match=r"holds an array of NumPy or CuPy, not .*tinygpt\.tensor"):
            Tensor(value)
        for ask in (tg.backends.array_module, tg.backends.name_of):
            with pytest.raises(DtypeError, match="expected an array of NumPy or CuPy, not"):
                ask(value)
    assert isinstance(Tensor(np.float32(2)).data, np.ndarray)


# Outputs that nobody used -------------------------------------------------------------------------


class Pair(Function):
    """x, w -> x * 2, w * 3."""

    def forward(self, x: Any, w: Any) -> Any:
        return x * 2.0, w * 3.0

    def backward(self, dx: Any, dw: Any) -> Any:
        return None if dx is None else dx * 2.0, None if dw is None else dw * 3.0


class Careless(Pair):
    def backward(self, dx: Any, dw: Any) -> Any:
        return dx * 2.0, dw * 3.0


class WithZeros(Careless):
    zeros_for_unused = True


def test_an_input_behind_an_unused_output_alone_has_no_gradient() -> None:
    for used, unused in ((0, 1), (1, 0)):
        inputs = [leaf(2, 2), leaf(2, 2)]
        behind = [x * 1.0 for x in inputs]
        Pair.apply(*behind)[used].sum().backward()
        assert inputs[used].grad is not None
        assert inputs[unused].grad is None
    optimizer = optim.AdamW(inputs, lr=0.1, weight_decay=0.5)
    before = inputs[unused].data.copy()
    optimizer.step()
    assert np.array_equal(inputs[unused].data, before)  # not decayed


def test_layer_normalisation_that_nobody_read_leaves_its_weights_alone() -> None:
    residual, x, weight, bias, x_bias = leaf(4, 3), leaf(4, 3), leaf(3), leaf(3), leaf(3)
    total, _ = ops.residual_layer_norm(residual, x, weight, bias, x_bias)
    dy = leaf(4, 3).data
    total.backward(dy)
    assert weight.grad is None
    assert bias.grad is None
    assert np.array_equal(residual.grad, dy)
    assert np.array_equal(x.grad, dy)
    assert np.allclose(x_bias.grad, dy.sum(axis=0))


def test_a_function_that_forgets_unused_outputs_gets_a_sentence_or_zeros() -> None:
    x, w = leaf(2), leaf(2)
    with pytest.raises(
        UsageError, match=r"Careless\.backward failed.*None for output 1, which was not used.*zeros_for"
    ):
        Careless.apply(x, w)[0].sum().backward()
    x.zero_grad()
    WithZeros.apply(x, w)[0].sum().backward()
    assert np.array_equal(x.grad, [2, 2])
    assert np.array_equal(w.grad, [0, 0])


def test_a_mistake_of_its_own_stays_what_it_is() -> None:
    x, w = leaf(2), leaf(2)
    y, z = Careless.apply(x, w)
    with pytest.raises(TypeError, match="ufunc 'add'"):
        Returning.apply(y + z, given=lambda dy: dy + "x").sum().backward()


# Threads, chains, copies --------------------------------------------------------------------------


@pytest.mark.parametrize("function", [lambda w: w * 1.0, lambda w: ops.embedding(w, np.arange(300))])
def test_two_threads_add_to_one_leaf(function: Any) -> None:
    w = Tensor(np.ones((300, 400), np.float32), requires_grad=True)
    start = threading.Barrier(3)

    def work() -> None:
        start.wait()
        for _ in range(20):
            function(w).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (w.grad == 60).all()


@pytest.mark.parametrize(
    ("name", "n"), [("gelu", 1100), ("layer_norm", 1100), ("bias_gelu", 60), ("residual_layer_norm", 1100)]
)
def test_a_long_chain_of_recomputable_results(name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No recursion, and each is recomputed at most once for each operation that reads it."""
    x, one = leaf(4), Tensor(np.ones(4, np.float32), requires_grad=True)
    step = {
        "gelu": lambda y: ops.gelu(y),
        "layer_norm": lambda y: ops.layer_norm(y, one),
        "bias_gelu": lambda y: ops.bias_gelu(y, y),
        "residual_layer_norm": lambda y: ops.residual_layer_norm(y, y, one)[1],
    }[name]
    y = x
    for _ in range(n):
        y = step(y)
    made: list[int] = []
    right = type(y.node).recompute
    monkeypatch.setattr(type(y.node), "recompute", lambda node, output: made.append(1) or right(node, output))
    (y * one).sum().backward()
    assert np.isfinite(x.grad).all()
    assert len(made) <= n + 1


def test_a_leaf_is_copied_with_its_gradient_and_a_result_is_not() -> None:
    p = nn.Parameter(np.ones(3, np.float32))
    (p * p).sum().backward()
    for made in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(made) is nn.Parameter
        assert np.array_equal(made.data, p.data)
        assert np.array_equal(made.grad, p.grad)
        assert not np.shares_memory(made.data, p.data)
        assert not np.shares_memory(made.grad, p.grad)
        (made * 1.0).sum().backward()
        assert np.array_equal(p.grad, [2, 2, 2])
    y = p * 2.0
    for make in (copy.deepcopy, pickle.dumps):
        with pytest.raises(
            UsageError, match=r"is a result \(made by Mul\), whose graph can't be copied: copy x\.detach"
        ):
            make(y)
        make(y.detach())
    with tg.no_grad():
        copy.deepcopy(p * 2.0)
    shallow = copy.copy(y)
    shallow.sum().backward()  # of the same graph
    assert np.array_equal(p.grad, [4, 4, 4])
    assert copy.copy(p).data is p.data
    assert copy.copy(p).grad is None


def test_a_model_is_copied_whole() -> None:
    model = tg.GPT(tg.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8), seed=1)
    ids = np.arange(8)[None]
    model.loss(ids, ids[:, ::-1]).backward()
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        pairs = list(zip(made.parameters(), model.parameters(), strict=True))
        assert all(np.array_equal(a.data, b.data) and np.array_equal(a.grad, b.grad) for a, b in pairs)
        assert not any(np.shares_memory(a.data, b.data) for a, b in pairs)
        made.zero_grad()
        made.loss(ids, ids[:, ::-1]).backward()
        assert all(np.array_equal(a.grad, b.grad) for a, b in pairs)
    model.last = model(ids)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="whose graph can't be copied"):
        copy.deepcopy(model)


# Anomalies ----------------------------------------------------------------------------------------


def test_an_operation_that_was_given_a_nan_is_not_to_blame() -> None:
    bad = Tensor(np.array([1.0, np.nan]), requires_grad=True)
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = x * 2.0
    with tg.detect_anomaly():
        with pytest.raises(NonFiniteError, match=r"Mul was given nan in its forward pass.*outside detect_anomaly"):
            bad * 2.0
        with pytest.raises(NonFiniteError, match="Mul was given nan in its backward pass"):
            y.backward(np.array([np.nan, 1.0]))


def test_an_infinity_that_was_there_before_passes() -> None:
    x = Tensor(np.array([[1.0, 2.0, 3.0]]), requires_grad=True)
    mask = np.array([0.0, -np.inf, 0.0])
    with tg.detect_anomaly():
        (ops.softmax(x + mask) * np.array([1.0, 2.0, 3.0])).sum().backward()
        with pytest.raises(NonFiniteError, match="Mul is the first operation to produce nan in its forward pass"):
            (x + mask) * 0.0
    assert np.isfinite(x.grad).all()


def test_a_gradient_from_before_is_not_blamed_on_the_operation_that_adds_to_it() -> None:
    table = leaf(4, 3)
    table.grad = np.full((4, 3), np.nan, np.float32)
    with tg.detect_anomaly():
        ops.embedding(table, [0, 1]).sum().backward()


def test_residual_layer_norm_without_a_weight_gets_a_sentence() -> None:
    x = leaf(2, 3)
    with pytest.raises(DtypeError, match="residual_layer_norm: weight must be a tensor, not NoneType"):
        ops.residual_layer_norm(x, x, None)  # type: ignore[arg-type]
