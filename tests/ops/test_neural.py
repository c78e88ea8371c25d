"""What the rows of `cases/neural.py` do not say about neural operations: edges, masks, memory, randomness."""

from __future__ import annotations

import importlib
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import ops
from tinygpt.errors import UsageError
from tinygpt.kernel import use_kernels
from tinygpt.ops import _matmul
from tinygpt.ops.cross_entropy import cross_entropy_composed
from tinygpt.ops.dropout import threshold
from tinygpt.ops.erf import erf_array, normal_cdf
from tinygpt.random import Generator, default_generator, words
from tinygpt.tensor import Tensor
from tinygpt.testing import check_gradients

rng = np.random.default_rng(20)
both_bodies = pytest.mark.parametrize("kind", ["reference", "auto"])
linear_cross_entropy_module = importlib.import_module("tinygpt.ops.linear_cross_entropy")


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(array, requires_grad=True) for array in arrays]


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


# erf and gelu ---------------------------------------------------------------------------------------


def test_erf_is_accurate_everywhere() -> None:
    x = np.concatenate([np.linspace(-6.5, 6.5, 20001), np.geomspace(1e-300, 1.0, 500), [0.0, 30.0, -np.inf, np.inf]])
    expected = np.array([math.erf(value) for value in x])
    got = erf_array(x)
    assert np.all(np.abs(got - expected) <= 1e-15 * np.abs(expected))
    assert np.isnan(erf_array(np.array([np.nan]))).all()


def test_normal_cdf_keeps_its_digits_in_the_tail() -> None:
    x = np.linspace(-30.0, 8.0, 20001)
    expected = np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in x])
    relative = np.abs(normal_cdf(x) - expected) / expected
    assert relative[x > -1].max() <= 1e-15
    # exp(-z**2) carries the rounding of z**2, and so does the C library's erfc of the rounded argument.
    assert np.all(relative <= 4e-16 * np.maximum(4.0, x * x))


def test_the_two_forms_of_gelu_differ_by_less_than_a_thousandth() -> None:
    x = Tensor(np.linspace(-6, 6, 1001))
    difference = np.abs(ops.gelu(x).data - ops.gelu(x, "none").data).max()
    assert 1e-4 < difference < 1e-3


@both_bodies
@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_of_huge_numbers(kind: str, approximate: str) -> None:
    x = Tensor(np.array([-1e30, -50.0, 0.0, 50.0, 1e30], dtype=np.float32), requires_grad=True)
    with use_kernels(kind):
        y = ops.gelu(x, approximate)
        y.backward(np.ones(5))
    assert np.array_equal(y.data, np.array([0, 0, 0, 50.0, 1e30], dtype=np.float32))
    assert np.array_equal(x.grad, [0, 0, 0.5, 1, 1])


# softmax and the losses -----------------------------------------------------------------------------


@both_bodies
def test_softmax_of_huge_and_of_infinite_numbers(kind: str) -> None:
    x = np.array([[1e4, 1e4 - 1.0, -1e4], [-np.inf, 0.0, 0.0], [-np.inf, -np.inf, -np.inf]], dtype=np.float32)
    with use_kernels(kind):
        y, z = ops.softmax(Tensor(x)).data, ops.log_softmax(Tensor(x)).data
    e = math.exp(-1.0)
    assert np.allclose(y[0], [1 / (1 + e), e / (1 + e), 0], atol=1e-6)
    assert np.allclose(z[0], [-math.log1p(e), -1 - math.log1p(e), -2e4 - math.log1p(e)], rtol=1e-6)
    assert np.array_equal(y[1], [0, 0.5, 0.5])
    assert z[1][0] == -np.inf
    assert np.isnan(y[2]).all()
    assert np.isnan(z[2]).all()


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_softmax_of_nothing_is_nothing(shape: tuple[int, ...]) -> None:
    (x,) = tensors(np.ones(shape))
    for function in (ops.softmax, ops.log_softmax):
        y = function(x)
        y.backward(np.ones(shape))
        assert y.shape == x.grad.shape == shape


@both_bodies
def test_cross_entropy_of_huge_logits(kind: str) -> None:
    logits = np.array([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]])
    (x,) = tensors(logits)
    with use_kernels(kind):
        loss = ops.cross_entropy(x, [0, 2])
        loss.backward()
    assert loss.item() == 1e4
    assert np.array_equal(x.grad, [[0, 0, 0], [0.5, 0, -0.5]])


@both_bodies
def test_cross_entropy_with_all_but_one_ignored(kind: str) -> None:
    logits, targets = normal(2, 3, 5), np.full((2, 3), -100)
    targets[1, 0] = 4
    (x,) = tensors(logits)
    with use_kernels(kind):
        loss = ops.cross_entropy(x, targets)
        loss.backward()
    row = logits[1, 0]
    assert loss.item() == pytest.approx(math.log(np.exp(row).sum()) - row[4], rel=1e-14)
    assert np.count_nonzero(x.grad.any(axis=-1)) == 1
    assert np.allclose(x.grad[1, 0], np.exp(row) / np.exp(row).sum() - np.eye(5)[4], rtol=1e-13)


@both_bodies
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_ignored_row_may_hold_anything(kind: str, bad: float) -> None:
    """Padding is not looked at: no nan of an ignored row reaches the loss or the gradient."""
    logits = normal(2, 4)
    logits[1] = bad
    x, weight = tensors(logits, np.eye(4))
    with use_kernels(kind):
        loss = ops.cross_entropy(x, [3, -100])
        loss.backward()
        assert np.isfinite(loss.item())
        assert np.array_equal(x.grad[1], np.zeros(4))
        clean = np.where(np.isfinite(logits), logits, 1e3)
        fused = ops.linear_cross_entropy(Tensor(clean, requires_grad=True), weight, [3, -100])
    assert fused.item() == pytest.approx(loss.item(), rel=1e-14)


def test_another_ignore_index() -> None:
    logits = normal(3, 4)
    for function in (ops.cross_entropy, lambda x, t, i: ops.linear_cross_entropy(x, Tensor(np.eye(4)), t, i)):
        ignoring_zero = function(Tensor(logits), [0, 1, 3], 0).item()
        assert ignoring_zero == pytest.approx(function(Tensor(logits[1:]), [1, 3], -100).item(), rel=1e-14)


@both_bodies
@pytest.mark.parametrize("block_rows", [1, 2, 3, 5, 7, 100])
def test_linear_cross_entropy_in_blocks_of_any_size(kind: str, block_rows: int, monkeypatch: Any) -> None:
    N, C, V = 7, 5, 11
    monkeypatch.setattr(linear_cross_entropy_module, "BLOCK_BYTES", block_rows * V * 8)
    monkeypatch.setattr(_matmul, "SLICE_BYTES", 3 * C * 8)
    arrays, targets = (normal(N, C), normal(V, C)), np.array([0, V - 1, -100, 3, 3, -100, 9])
    x, weight = tensors(*arrays)
    x2, weight2 = tensors(*arrays)
    with use_kernels(kind):
        loss = ops.linear_cross_entropy(x, weight, targets)
        loss.backward()
    expected = cross_entropy_composed(x2 @ weight2.T, targets)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    assert np.allclose(x.grad, x2.grad, rtol=1e-12, atol=1e-15)
    assert np.allclose(weight.grad, weight2.grad, rtol=1e-12, atol=1e-15)
    with tg.no_grad():
        assert ops.linear_cross_entropy(x, weight, targets).item() == pytest.approx(expected.item(), rel=1e-14)


def test_linear_cross_entropy_through_a_retained_graph() -> None:
    """The first backward gives the saved gradients away; later ones must not see what became of them."""
    x, weight = tensors(normal(6, 3), normal(5, 3))
    loss = ops.linear_cross_entropy(x, weight, [0, 1, 2, 3, 4, 0])
    loss.backward(retain_graph=True)
    once = x.grad.copy(), weight.grad.copy()
    loss.backward(retain_graph=True)
    loss.backward(np.array(-0.5))
    assert np.allclose(x.grad, 1.5 * once[0], rtol=1e-14)
    assert np.allclose(weight.grad, 1.5 * once[1], rtol=1e-14)


def test_linear_cross_entropy_with_a_tied_weight() -> None:
    """The head's weight is the embedding table as well: its gradient is the sum of both uses."""
    ids, targets = np.array([[0, 3, 3], [1, 4, 2]]), np.array([[3, 3, 0], [4, 2, -100]])
    check_gradients(lambda w: ops.linear_cross_entropy(ops.embedding(w, ids).tanh(), w, targets) * 3.0, normal(5, 4))


def test_linear_cross_entropy_never_holds_all_the_logits(monkeypatch: Any) -> None:
    N, C, V = 512, 8, 4096  # all the logits: 16 MB
    monkeypatch.setattr(linear_cross_entropy_module, "BLOCK_BYTES", 2**20)
    x, weight = Tensor(normal(N, C), requires_grad=True), Tensor(normal(V, C), requires_grad=True)
    targets = np.arange(N)
    tracemalloc.start()
    try:
        ops.linear_cross_entropy(x, weight, targets).backward()
        with tg.no_grad():
            ops.linear_cross_entropy(x, weight, targets)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * 2**20


def test_binary_cross_entropy_of_huge_logits() -> None:
    (x,) = tensors(np.array([1e4, -1e4, 1e4, -1e4]))
    loss = ops.binary_cross_entropy(x, [1, 0, 0, 1])
    loss.backward()
    assert loss.item() == 5e3
    assert np.array_equal(x.grad, [0, 0, 0.25, -0.25])


def test_binary_cross_entropy_takes_booleans() -> None:
    x = Tensor(normal(3))
    expected = ops.binary_cross_entropy(x, [1.0, 0.0, 1.0]).item()
    assert ops.binary_cross_entropy(x, np.array([True, False, True])).item() == expected


# embedding ------------------------------------------------------------------------------------------


@both_bodies
def test_embedding_adds_up_repeated_ids(kind: str) -> None:
    (weight,) = tensors(normal(4, 3))
    dy = normal(2, 3, 3)
    with use_kernels(kind):
        ops.embedding(weight, [[2, 2, 0], [2, 3, 2]]).backward(dy)
    expected = np.zeros((4, 3))
    np.add.at(expected, [2, 2, 0, 2, 3, 2], dy.reshape(6, 3))
    assert np.allclose(weight.grad, expected, rtol=1e-14)
    assert not weight.grad[1].any()


@both_bodies
def test_embedding_adds_to_the_gradient_that_is_there(kind: str) -> None:
    (weight,) = tensors(normal(4, 3))
    present, dy = normal(4, 3), normal(2, 3)
    weight.grad = given = present.copy()
    with use_kernels(kind):
        ops.embedding(weight, [2, 2]).backward(dy)
    assert weight.grad is given
    assert np.array_equal(given[[0, 1, 3]], present[[0, 1, 3]])
    assert np.allclose(given[2], present[2] + dy[0] + dy[1], rtol=1e-14)


def test_the_gradient_that_is_there_may_lie_in_memory_as_it_likes() -> None:
    (weight,) = tensors(normal(4, 3).astype(np.float32))
    weight.grad = np.asfortranarray(np.ones((4, 3), np.float32))
    ops.embedding(weight, [1, 3]).backward(np.ones((2, 3), np.float32))
    assert weight.grad.tolist() == [[1.0] * 3, [2.0] * 3, [1.0] * 3, [2.0] * 3]


def test_a_table_that_is_a_result_gets_a_gradient_of_its_own() -> None:
    (weight,) = tensors(normal(4, 3))
    table = weight * 2.0
    (ops.embedding(table, [1]).sum() + table.sum()).backward()
    assert weight.grad.tolist() == [[2.0] * 3, [4.0] * 3, [2.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_ids_of_any_integer_dtype(dtype: Any) -> None:
    weight, ids = Tensor(normal(100, 2)), np.array([[0, 99], [99, 1]], dtype=dtype)
    for given in (ids, ids.tolist(), Tensor(ids)):
        assert np.array_equal(ops.embedding(weight, given).data, weight.data[ids.astype(np.int64)])
    logits = Tensor(normal(2, 2, 100))
    expected = cross_entropy_composed(logits, ids.astype(np.int64)).item()
    assert ops.cross_entropy(logits, ids).item() == pytest.approx(expected, rel=1e-14)


# dropout --------------------------------------------------------------------------------------------


@both_bodies
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_a_fraction_p_and_keeps_the_mean(kind: str, p: float) -> None:
    n = 400 * 1000
    with use_kernels(kind):
        y = ops.dropout(Tensor(np.ones((400, 1000))), p, generator=Generator(5)).data
    deviation = math.sqrt(p * (1 - p) / n)
    assert abs(np.mean(y == 0) - p) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p)
    assert set(np.unique(y)) == {0.0, 1 / (1 - p)}
    rows = (y == 0).mean(axis=1)
    assert abs(rows.std() - math.sqrt(p * (1 - p) / 1000)) < 0.2 * math.sqrt(p * (1 - p) / 1000)


@both_bodies
def test_dropout_backward_uses_the_mask_of_forward(kind: str) -> None:
    x, dy = tensors(normal(5, 70))[0], normal(5, 70)
    with use_kernels(kind):
        y = ops.dropout(x, 0.3, generator=Generator(1, stream=2))
        y.backward(dy)
    keep = words(1, 2, 5, 70) >= threshold(0.3)
    assert np.array_equal(y.data != 0, keep)
    assert np.allclose(x.grad, dy * keep / 0.7, rtol=1e-14)


def test_dropout_uses_one_stream_and_only_when_it_drops() -> None:
    generator, x = Generator(3), Tensor(normal(4, 4))
    assert ops.dropout(x, 0.0, generator=generator) is x
    assert ops.dropout(x, 0.5, training=False, generator=generator) is x
    ops.attention(*(Tensor(normal(1, 1, 2, 3)) for _ in range(3)), generator=generator)
    assert generator.stream == 0
    first, second = (ops.dropout(x, 0.5, generator=generator).data for _ in range(2))
    assert generator.stream == 2
    assert not np.array_equal(first, second)
    before = default_generator.stream
    ops.dropout(x, 0.5)
    assert default_generator.stream == before + 1


def test_dropout_of_a_single_number_and_of_nothing() -> None:
    assert ops.dropout(Tensor(np.array(3.0)), 0.5, generator=Generator(0)).data in (0.0, 6.0)
    assert ops.dropout(Tensor(np.ones((3, 0))), 0.5).shape == (3, 0)


# the residual seam ----------------------------------------------------------------------------------


@both_bodies
def test_residual_layer_norm_without_biases_has_no_gradients_for_them(kind: str) -> None:
    residual, x, weight = tensors(normal(3, 4), normal(3, 4), normal(4))
    with use_kernels(kind):
        total, y = ops.residual_layer_norm(residual, x, weight)
        assert total.node is not None
        assert len(total.node.parents) == 3
        (total * y).sum().backward()
    assert np.array_equal(total.data, residual.data + x.data)
    assert np.array_equal(residual.grad, x.grad)
    assert not np.shares_memory(residual.grad, x.grad)


def test_residual_layer_norm_in_evaluation_does_not_drop() -> None:
    residual, x, weight = tensors(normal(3, 4), normal(3, 4), normal(4))
    generator = Generator(0)
    total, _ = ops.residual_layer_norm(residual, x, weight, dropout_p=0.5, training=False, generator=generator)
    assert np.array_equal(total.data, residual.data + x.data)
    assert generator.stream == 0


@pytest.mark.parametrize("output", [0, 1])
def test_residual_layer_norm_with_one_output_used(output: int) -> None:
    check_gradients(
        lambda *a: ops.residual_layer_norm(*a, dropout_p=0.3, generator=Generator(2))[output],
        *(normal(3, 5), normal(3, 5), normal(5), normal(5), normal(5)),
    )


def test_no_target_left_is_an_error_not_a_number() -> None:
    with pytest.raises(UsageError, match="no target is left"):
        ops.cross_entropy(Tensor(normal(2, 3)), [-100, -100])
