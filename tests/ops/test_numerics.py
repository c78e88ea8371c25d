"""Digits that must not get lost: far from zero, at the ends of the range, at infinity; on every compiled level.

`extremes.py` has the rule that all operations are held to, and its inputs. Here are those of which the right numbers
are known beforehand.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.kernel.at_level import NAMED, output_at
from tinygpt import ops
from tinygpt.kernel import REGISTRY, use_kernels

CHECK = """
import sys
from tests.ops.extremes import compiled_against_reference, compiled_not_finite
from tests.ops.test_numerics import exp_is_off_by
from tinygpt.backends import get

assert get("numpy").extension().__name__.endswith("." + sys.argv[1])
found = [*compiled_against_reference(), *compiled_not_finite(), *exp_is_off_by(4)]
print(*found, "the rule was checked", sep="\\n")
"""
both_bodies = pytest.mark.parametrize("kernels", ["auto", "reference"])


@pytest.fixture(autouse=True)
def bodies(request: pytest.FixtureRequest) -> Any:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    with use_kernels(parameters.get("kernels", "auto")):
        yield


def exp_is_off_by(allowed: float) -> list[str]:
    """What is wrong where the compiled exp is off by more than so many units of rounding, seen through a softmax."""
    found = []
    for dtype, least in ((np.float32, -85), (np.float64, -700)):
        x = np.linspace(least, 0, 2001).astype(dtype)
        with use_kernels("cython"):
            y = REGISTRY["softmax_forward"](np.stack([np.zeros_like(x), x], axis=1))[:, 1]
        exact = np.array([math.exp(v) / (1 + math.exp(v)) for v in x])
        off = float(np.abs(y / exact - 1).max() / np.finfo(dtype).eps * 2)
        found += [f"exp in {dtype.__name__} is off by {off:.1f} roundings"] * (off > allowed)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("level", NAMED)
def test_every_operation_at_every_level(level: str) -> None:
    """The error of compiled bodies is at most twice the reference's, and what is not finite comes out alike."""
    assert output_at(level, CHECK).splitlines() == ["the rule was checked"]


def leaf(array: Any, dtype: Any = np.float32) -> tg.Tensor:
    return tg.tensor(np.array(array, dtype), requires_grad=True)


# What all numbers of a row have in common ----------------------------------------------------------


def far_logits(offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (8, 65) that float32 holds at the offset, targets, and the gradient of their mean cross-entropy."""
    step = max(0.25, float(np.spacing(np.float32(abs(offset)))))
    near = step * np.random.default_rng(0).integers(-3, 4, (8, 65))
    targets = np.arange(8)
    p = np.exp(near - near.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(8), targets] -= 1
    return near + offset, targets, p / 8


@both_bodies
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4, 2.0**20, 1e8, -1e8, 2.0**50])
def test_cross_entropy_does_not_see_a_common_offset(offset: float, dtype: Any, kernels: str) -> None:
    logits, targets, gradient = far_logits(offset)
    x = leaf(logits, dtype)
    assert np.array_equal(x.data, logits)
    ops.cross_entropy(x, targets).backward()
    assert np.abs(x.grad - gradient).max() < 0.3 * np.finfo(dtype).eps
    y, weight = leaf(logits, dtype), tg.tensor(np.eye(65, dtype=dtype))
    ops.linear_cross_entropy(y, weight, targets).backward()
    assert np.abs(y.grad - gradient).max() < 0.3 * np.finfo(dtype).eps


@both_bodies
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [65, 5000])
@pytest.mark.parametrize("offset", [2.0**20, 2.0**50, 2.0**70])
def test_losses_and_log_softmax_do_not_see_a_common_offset(
    offset: float, classes: int, dtype: Any, kernels: str
) -> None:
    step = max(0.25, float(np.spacing(dtype(offset))))
    near = -step * np.random.default_rng(0).integers(0, 4, (3, classes))
    exact = near - np.log(np.exp(near).sum(axis=1, keepdims=True))
    z = ops.log_softmax(tg.tensor((near + offset).astype(dtype))).data
    # A sum of N doubles, few of them different and rounded alike, is off by up to N / 2 units; so is its logarithm.
    of_sum = classes / 2 * np.finfo(np.float64).eps
    assert np.abs(z - exact).max() <= 2 * np.finfo(dtype).eps * np.abs(exact).max() + of_sum
    losses, _ = REGISTRY["cross_entropy_forward"]((near + offset).astype(dtype), np.array([0, 1, 2]), -100)
    right = -exact[np.arange(3), [0, 1, 2]]
    assert np.abs(losses - right).max() <= 2 * np.finfo(dtype).eps * np.abs(right).max() + of_sum


@both_bodies
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_does_not_see_what_a_query_has_in_common_with_every_key(is_causal: bool, kernels: str) -> None:
    """Scores of 2**24 and a few, all of them even numbers, which float32 holds."""
    rng = np.random.default_rng(0)
    q, k = (rng.integers(-2, 3, (1, 2, 70, 8)).astype(np.float32) * 2 for _ in range(2))
    v, dy = (rng.standard_normal((1, 2, 70, 8)).astype(np.float32) for _ in range(2))
    far_q, far_k = q.copy(), k.copy()
    far_q[..., 0], far_k[..., 0] = 2.0**12, 2.0**12
    q[..., 0], k[..., 0] = 0, 0
    results = []
    for queries, keys in ((q, k), (far_q, far_k)):
        tensors = [leaf(queries), leaf(keys), leaf(v)]
        y = ops.attention(*tensors, is_causal=is_causal, scale=1.0)
        y.backward(dy)
        results.append([y.data, *(t.grad[..., 1:] for t in tensors[:2]), tensors[2].grad])
    for near, far in zip(*results, strict=True):
        assert np.abs(near - far).max() <= 4e-6 * np.abs(near).max()


@both_bodies
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm_does_not_see_a_common_offset_on_the_way_back(residual: bool, kernels: str) -> None:
    """A mean rounded to float32 is off by a part of these deviations."""
    rng = np.random.default_rng(0)
    near = 2.0**-10 * rng.integers(-2, 3, (6, 70))  # exact at 8192
    dy, weight = rng.standard_normal((6, 70)).astype(np.float32), rng.standard_normal(70)
    results = []
    for dtype, offset in ((np.float64, 0.0), (np.float32, 8192.0)):
        x, w = leaf(near + offset, dtype), leaf(weight, dtype)
        assert np.array_equal(x.data, near + offset)
        if residual:
            zero = tg.tensor(np.zeros_like(x.data))
            y = ops.residual_layer_norm(x, zero, w, eps=1e-12)[1]
        else:
            y = ops.layer_norm(x, w, eps=1e-12)
        y.backward(dy.astype(dtype))
        results.append((y.data, x.grad, w.grad))
    for exact, got in zip(*results, strict=True):
        assert np.abs(got - exact).max() <= 2e-6 * np.abs(exact).max()


# The ends of the range ----------------------------------------------------------------------------


@both_bodies
def test_rows_up_to_the_largest_float_are_normalised(kernels: str) -> None:
    x = np.float32(3.4e38) * np.tile(np.float32([1, -1, 1, 1, 0, 0.5, -1]), (3, 10))
    results = []
    for dtype in (np.float64, np.float32):
        t, w = leaf(x, dtype), leaf(np.ones(70), dtype)
        y = ops.layer_norm(t, w)
        y.backward(np.tile(np.arange(70, dtype=dtype), (3, 1)))
        results.append((y.data, t.grad * 1e38, w.grad))
    for exact, got in zip(*results, strict=True):
        assert np.abs(got - exact).max() <= 4e-6 * np.abs(exact).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_and_variances_that_fit_are_finite(dtype: Any) -> None:
    largest = np.finfo(dtype).max
    eps = np.finfo(dtype).eps
    assert abs(tg.tensor(np.full(1000, largest)).mean().item() / largest - 1) < eps
    root = math.sqrt(float(largest)) / 2
    x = leaf(np.tile([root, -root], 500), dtype)
    variance = x.var(correction=0)
    assert abs(variance.item() / root**2 - 1) < 4 * eps
    variance.backward()
    assert np.abs(x.grad * 500 / x.data - 1).max() < 4 * eps
    smallest = leaf(np.full(8, 4 * np.finfo(dtype).tiny), dtype)
    assert smallest.mean().item() == smallest.data[0]
    assert tg.tensor(np.array([3e100, 1e-220]) ** 2.5).sum().item() == 3e100**2.5
    assert tg.tensor(np.array([1.5e308, 1.5e308, -1.5e308])).sum().item() == 1.5e308


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-30, 1e30, 1e200, 5e307])
def test_the_norm_of_gradients_that_fits_is_right(size: float) -> None:
    parameters = [leaf(np.zeros(2), np.float64), leaf(np.zeros(1), np.float64)]
    parameters[0].grad, parameters[1].grad = np.array([size, -size]), np.array([size])
    norm = tg.optim.grad_norm(parameters)
    assert abs(norm / size - math.sqrt(3)) < 1e-3 if size < 1e-300 else abs(norm / size / math.sqrt(3) - 1) < 1e-15
    assert tg.optim.clip_grad_norm(parameters, norm / 2) == norm
    assert tg.optim.grad_norm(parameters) == pytest.approx(norm / 2, rel=1e-3 if size < 1e-300 else 1e-15)


def test_clipping_to_a_factor_that_float32_does_not_have() -> None:
    parameter = leaf(np.zeros(3))
    parameter.grad = np.full(3, 1e38, np.float32)
    tg.optim.clip_grad_norm([parameter], 1e-5)
    assert np.allclose(parameter.grad, 1e-5 / math.sqrt(3), rtol=1e-6, atol=0)


def test_the_norm_of_what_is_not_finite_or_zero() -> None:
    parameter = leaf(np.zeros(3), np.float64)
    for gradient, norm in (([0.0, 0, 0], 0.0), ([1, np.inf, 2], np.inf), ([1, np.nan, np.inf], np.nan)):
        parameter.grad = np.array(gradient)
        assert np.array_equal(tg.optim.grad_norm([parameter]), norm, equal_nan=True)


# Infinities ---------------------------------------------------------------------------------------


@both_bodies
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["tanh", "none", "bias"])
def test_gelu_of_infinities_is_its_limit(form: str, dtype: Any, kernels: str) -> None:
    x = leaf([np.inf, -np.inf, np.nan, 1e30, -1e30, -41.0], dtype)
    y = ops.bias_gelu(x, tg.tensor(np.zeros(6, dtype))) if form == "bias" else ops.gelu(x, form)
    y.backward(np.ones(6, dtype))
    assert np.array_equal(y.data, np.array([np.inf, 0, np.nan, 1e30, 0, 0], dtype), equal_nan=True)
    assert np.array_equal(x.grad, [1, 0, np.nan, 1, 0, 0], equal_nan=True)


@both_bodies
def test_a_query_of_minus_infinity_has_no_softmax(kernels: str) -> None:
    """Its result is NaN, and so are the gradients that it has a part in; other queries' results are not."""
    rng = np.random.default_rng(0)
    q, k, v = (np.abs(rng.standard_normal((1, 1, 20, 8))) for _ in range(3))
    q[0, 0, 3] = -np.inf
    tensors = [leaf(array) for array in (q, k, v)]
    y = ops.attention(*tensors, is_causal=False)
    y.backward(np.ones(y.shape))
    spoilt = np.arange(20) == 3
    assert np.array_equal(np.isnan(y.data[0, 0]).all(axis=-1), spoilt)
    assert np.array_equal(np.isnan(tensors[0].grad[0, 0]).all(axis=-1), spoilt)
    assert np.isnan(tensors[1].grad).all()
    assert np.isnan(tensors[2].grad).all()


def test_not_a_number_does_not_vanish_in_relu_and_max() -> None:
    x = leaf([np.nan, -1.0, 2.0])
    y = x.relu()
    y.backward(np.array([3.0, 3.0, 3.0]))
    assert np.array_equal(y.data, [np.nan, 0, 2], equal_nan=True)
    assert np.array_equal(x.grad, [3, 0, 3])
    assert np.isnan(x.max().item())
