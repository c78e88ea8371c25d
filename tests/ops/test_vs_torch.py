"""The neural-network operations against PyTorch, where it is installed: the definitions, not only the derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.ops.cases import ROWS
from tests.ops.drawing import Row, some_examples
from tinygpt import ops
from tinygpt.tensor import Tensor

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is only needed for this comparison")
F: Any = torch.nn.functional

rng = np.random.default_rng(3)
IDS = rng.integers(0, 11, (4, 5))
TARGETS = np.where(rng.random((4, 5)) < 0.3, -100, IDS)
FRACTIONS = rng.random((4, 5))


def same(ours: Callable[..., Any], theirs: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
    """Equal results, and equal gradients for one random upstream gradient, to 1e-12 in float64."""
    arrays = [2.0 * rng.standard_normal(shape) for shape in shapes]
    a = [Tensor(array, requires_grad=True) for array in arrays]
    b = [torch.tensor(array, requires_grad=True) for array in arrays]
    y, z = ours(*a), theirs(*b)
    assert y.shape == tuple(z.shape)
    assert np.abs(y.data - z.detach().numpy()).max() <= 1e-12
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    for one, other in zip(a, b, strict=True):
        assert np.abs(one.grad - other.grad.numpy()).max() <= 1e-12


@pytest.mark.parametrize("row", [row for row in ROWS if row.torch is not None], ids=lambda row: row.name)
def test_rows(row: Row) -> None:
    """For what its row draws."""
    assert row.torch is not None
    for example in some_examples(row.examples, 20):
        shapes = [array.shape for array in example.make()]
        if all(np.prod(shape) for shape in shapes):
            same(partial(row.function, **example.options), partial(row.torch, torch, **example.options), *shapes)


def test_gelu() -> None:
    same(ops.gelu, lambda x: F.gelu(x, approximate="tanh"), (5, 7))
    same(lambda x: ops.gelu(x, "none"), lambda x: F.gelu(x), (5, 7))
    same(ops.bias_gelu, lambda x, b: F.gelu(x + b, approximate="tanh"), (5, 7), (7,))
    same(ops.erf, torch.erf, (5, 7))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int) -> None:
    same(lambda x: ops.softmax(x, axis), lambda x: F.softmax(x, axis), (5, 7, 4))
    same(lambda x: ops.log_softmax(x, axis), lambda x: F.log_softmax(x, axis), (5, 7, 4))


def test_losses() -> None:
    targets = torch.tensor(TARGETS.reshape(-1))
    same(
        lambda x: ops.cross_entropy(x, TARGETS),
        lambda x: F.cross_entropy(x.reshape(-1, 11), targets),
        (4, 5, 11),
    )
    same(
        lambda x, w: ops.linear_cross_entropy(x, w, TARGETS),
        lambda x, w: F.cross_entropy((x @ w.T).reshape(-1, 11), targets),
        *((4, 5, 3), (11, 3)),
    )
    same(
        lambda x: ops.binary_cross_entropy(x, FRACTIONS),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(FRACTIONS)),
        (4, 5),
    )


def test_embedding() -> None:
    same(lambda w: ops.embedding(w, IDS), lambda w: F.embedding(torch.tensor(IDS), w), (11, 3))


def test_layer_norm() -> None:
    same(ops.layer_norm, lambda x, w, b: F.layer_norm(x, (6,), w, b), (2, 4, 6), (6,), (6,))
    same(lambda x, w: ops.layer_norm(x, w), lambda x, w: F.layer_norm(x, (6,), w), (2, 4, 6), (6,))
    same(
        lambda r, x, w, b, x_bias: ops.residual_layer_norm(r, x, w, b, x_bias)[1],
        lambda r, x, w, b, x_bias: F.layer_norm(r + x + x_bias, (6,), w, b),
        *((2, 4, 6), (2, 4, 6), (6,), (6,), (6,)),
    )


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("Tq", "Tk"), [(5, 5), (3, 7), (7, 3), (1, 1)])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_attention(is_causal: bool, Tq: int, Tk: int, scale: float | None) -> None:
    same(
        lambda q, k, v: ops.attention(q, k, v, is_causal, scale=scale),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale),
        *((2, 3, Tq, 4), (2, 3, Tk, 4), (2, 3, Tk, 4)),
    )


def test_packed_attention() -> None:
    def theirs(qkv: Any) -> Any:
        q, k, v = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in qkv.split(12, dim=2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 12)

    same(lambda qkv: ops.qkv_attention(qkv, 3), theirs, (2, 5, 36))
