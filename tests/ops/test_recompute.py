"""What a backward pass keeps and overwrites: outputs that are recomputed, gradients that are written into."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygpt as tg
from tests.ops.cases import ROWS
from tests.ops.drawing import Row
from tinygpt import ops
from tinygpt.function import Function
from tinygpt.kernel import REGISTRY
from tinygpt.ops.bias_gelu import BiasGelu
from tinygpt.ops.gelu import Gelu, GeluErf
from tinygpt.ops.layer_norm import LayerNorm
from tinygpt.ops.residual_layer_norm import ResidualLayerNorm
from tinygpt.ops.rms_norm import RMSNorm
from tinygpt.ops.silu import Silu
from tinygpt.tensor import Tensor

RECOMPUTING = (Gelu, GeluErf, BiasGelu, Silu, LayerNorm, ResidualLayerNorm, RMSNorm)
RECOMPUTABLE_ROWS = [row for row in ROWS if any(node.recomputable for node in row.nodes)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def leaf(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Tensor:
    return Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)


def test_these_operations_can_recompute_an_output() -> None:
    assert {node for row in RECOMPUTABLE_ROWS for node in row.nodes if node.recomputable} >= set(RECOMPUTING)


@pytest.mark.parametrize("row", RECOMPUTABLE_ROWS, ids=lambda row: row.name)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_an_output_is_recomputed_in_the_same_bits(row: Row, data: Any, dtype: Any) -> None:
    example = data.draw(row.examples)
    tensors = [Tensor(array.astype(dtype), requires_grad=True) for array in example.make()]
    results = row.function(*tensors, **example.options)
    results = results if isinstance(results, tuple) else (results,)
    for result in results:
        if result.output_index in result.node.recomputable:
            again = result.node.recompute(result.output_index)
            assert (again.dtype, again.shape) == (result.dtype, result.shape)
            assert np.array_equal(again, result.data)
            assert not np.shares_memory(again, result.data)
            del again


def small_model(dropout: float = 0.0, bias: bool = True) -> tuple[tg.GPT, np.ndarray]:
    config = tg.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=dropout, bias=bias)
    ids = np.random.default_rng(5).integers(11, size=(3, 9))
    return tg.GPT(config, seed=1), ids


def gradients(dropout: float, bias: bool) -> list[np.ndarray]:
    model, ids = small_model(dropout, bias)
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_model_has_the_same_gradients_as_with_everything_kept(
    monkeypatch: pytest.MonkeyPatch, dropout: float, bias: bool
) -> None:
    with_less = gradients(dropout, bias)
    for operation in RECOMPUTING:
        monkeypatch.setattr(operation, "recomputable", ())
    assert all(np.array_equal(a, b) for a, b in zip(with_less, gradients(dropout, bias), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda x, w, b: ops.gelu(x),
        lambda x, w, b: ops.gelu(x, approximate="none"),
        lambda x, w, b: ops.bias_gelu(x, b),
        lambda x, w, b: ops.silu(x),
        lambda x, w, b: ops.layer_norm(x, w, b),
        lambda x, w, b: ops.residual_layer_norm(x, x * 2.0, w, b)[1],
        lambda x, w, b: ops.rms_norm(x, w),
    ],
    ids=[node.__name__ for node in RECOMPUTING],
)
def test_the_product_that_reads_it_keeps_nothing(rng: np.random.Generator, make: Any) -> None:
    x, w, b, weight = leaf(rng, 5, 6), leaf(rng, 6), leaf(rng, 6), leaf(rng, 6, 4)
    h = make(x, w, b)
    y = ops.linear(h, weight)
    array, expected, upstream = weakref.ref(h.data), h.data.copy(), leaf(rng, 5, 4).data
    del h
    assert array() is None
    y.backward(upstream, retain_graph=True)
    assert np.allclose(weight.grad, expected.T @ upstream, rtol=1e-5)
    first = x.grad.copy()
    x.grad = weight.grad = None
    y.backward(upstream)  # a second time it is recomputed once more
    assert np.array_equal(x.grad, first)
    assert np.allclose(weight.grad, expected.T @ upstream, rtol=1e-5)


def test_a_detached_output_is_kept(rng: np.random.Generator) -> None:
    """It is no longer a part of the graph behind it, which may be freed first."""
    x, weight = leaf(rng, 5, 6), leaf(rng, 6, 4)
    h = ops.gelu(x)
    y = ops.linear(h.detach(), weight)
    h.sum().backward()
    y.sum().backward()
    assert np.allclose(weight.grad, h.data.T @ np.ones((5, 4), np.float32), rtol=1e-5)


def test_a_freed_node_that_is_to_recompute_an_output_says_so(rng: np.random.Generator) -> None:
    x, weight = leaf(rng, 5, 6), leaf(rng, 6, 4)
    h = ops.gelu(x)
    y = ops.linear(h, weight)
    h.sum().backward()
    with pytest.raises(tg.errors.GraphFreedError, match="backward\\(\\) reached Gelu"):
        y.sum().backward()


# Gradients that are written over --------------------------------------------------------------------


class Doubled(Function):
    """Writes over the gradient it receives whenever it may, and records whether it did."""

    allowed: list[bool]

    def forward(self, x: Any) -> Any:
        return x * 2.0

    def backward(self, dy: Any) -> Any:
        self.allowed.append(self.may_overwrite)
        if self.may_overwrite:
            dy *= 2.0
            return dy
        return dy * 2.0


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    monkeypatch.setattr(Doubled, "allowed", [], raising=False)
    return Doubled.allowed


def double(x: Tensor) -> Tensor:
    return Doubled.apply(x)


@pytest.mark.parametrize(
    ("function", "factor", "expected"),
    [
        (lambda x: double(x * 3.0), 6.0, [False]),  # the user's own gradient
        (lambda x: double(x) * 3.0, 6.0, [True]),  # fresh from the product
        (lambda x: double(double(x)) * 3.0, 12.0, [True, True]),  # and passed on
        (lambda x: (double(x) + double(x)) * 3.0, 12.0, [False, False]),  # one array for both
        (lambda x: double(x) * 3.0 + double(x), 8.0, [False, True]),  # the second passes the user's own on
        (lambda x: double(double(x) + x) * 3.0, 18.0, [True, False]),  # dy goes to both inputs of the sum
        (lambda x: double(x.T).T * 3.0, 6.0, [False]),  # not contiguous as it comes
        (lambda x: (double(x) * 3.0).sum(axis=0, keepdims=True) * Tensor(np.ones((4, 3))), 24.0, [True]),
        (lambda x: double(x).sum(axis=0, keepdims=True) * Tensor(np.ones((4, 3))), 8.0, [False]),  # one row, stretched
    ],
)
def test_what_may_be_written_over(allowed: list[bool], function: Any, factor: float, expected: list[bool]) -> None:
    x = Tensor(np.arange(12.0).reshape(4, 3), requires_grad=True)
    y = function(x)
    upstream = np.ones(y.shape)
    y.backward(upstream)
    assert allowed == expected
    assert np.array_equal(upstream, np.ones(y.shape))
    assert np.array_equal(x.grad, np.full((4, 3), factor))


def test_two_passes_through_a_retained_graph_are_equal(allowed: list[bool], rng: np.random.Generator) -> None:
    x = leaf(rng, 4, 3)
    y = (ops.gelu(double(x)) * double(x)).sum()
    y.backward(retain_graph=True)
    once = x.grad.copy()
    x.grad = None
    y.backward()
    assert np.array_equal(x.grad, once)
    assert True in allowed


def test_gradients_of_two_leaves_share_no_memory(allowed: list[bool], rng: np.random.Generator) -> None:
    a, b = leaf(rng, 3, 3), leaf(rng, 3, 3)
    ((a + b) * 3.0).sum().backward()
    assert not np.shares_memory(a.grad, b.grad)
    assert np.array_equal(a.grad, np.full((3, 3), 3.0))


@pytest.mark.parametrize("name", ["gelu_backward", "gelu_erf_backward", "bias_gelu_backward"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_kernel_may_put_its_result_over_dy(name: str, dtype: Any, rng: np.random.Generator) -> None:
    kernel = REGISTRY[name]
    shapes = [(5, 700), (5, 700)] + ([(700,)] if "bias" in name else [])
    dy, *others = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    for body in kernel.variants().values():
        expected = body(dy, *others)
        over = dy.copy()
        got = body(over, *others, over)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        assert all(np.array_equal(a, b) for a, b in pairs)
    compiled = kernel.variants().get("cython")
    if compiled is not None:
        result = compiled(over := dy.copy(), *others, over)
        assert (result[0] if isinstance(result, tuple) else result) is over
