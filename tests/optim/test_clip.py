"""Clipping: the norm of all gradients, and the factor that shortens them."""

import math

import numpy as np
import pytest

from tests.optim.test_optim import parameters_and_gradients
from tinygpt import UsageError, tensor
from tinygpt.graph import NonFiniteError
from tinygpt.kernel import REGISTRY
from tinygpt.optim import (
    SGD,
    clip_coefficient,
    clip_grad_norm,
    grad_norm,
)


@pytest.mark.parametrize("variant", list(REGISTRY["sum_of_squares"].variants()))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_grad_norm_is_the_norm_of_one_long_vector(variant, dtype, monkeypatch):
    monkeypatch.setattr("tinygpt.kernel._choice.kind", variant)
    parameters, gradients = parameters_and_gradients(dtype, steps=1)
    for p, g in zip(parameters, gradients[0], strict=True):
        p.grad = g
    parameters[1].grad = None
    long = np.concatenate([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    np.testing.assert_allclose(grad_norm(parameters), np.linalg.norm(long.astype(np.float64)), rtol=1e-12)


def test_large_float32_gradients_do_not_overflow_the_norm():
    p = tensor(np.zeros(4, np.float32), requires_grad=True)
    p.grad = np.full(4, 3e38, np.float32)
    np.testing.assert_allclose(grad_norm([p]), 6e38, rtol=1e-6)


def test_clipping_shortens_and_keeps_the_direction():
    p, q = (tensor(np.zeros(2), requires_grad=True) for _ in range(2))
    p.grad, q.grad = np.array([3.0, 0.0]), np.array([0.0, 4.0])
    assert clip_grad_norm([p, q], 10.0) == 5.0
    np.testing.assert_array_equal(p.grad, [3, 0])  # already short enough: untouched
    assert clip_grad_norm(iter([p, q]), 1.0) == 5.0
    np.testing.assert_allclose([*p.grad, *q.grad], [0.6, 0, 0, 0.8])
    assert clip_grad_norm([p, q], 0.25) == pytest.approx(1.0)
    np.testing.assert_allclose([*p.grad, *q.grad], [0.15, 0, 0, 0.2])
    assert clip_coefficient(5.0, 2.0) == 0.4
    assert clip_coefficient(0.0, 1.0) == 1.0


@pytest.mark.parametrize("function", [grad_norm, lambda parameters: clip_grad_norm(parameters, 1.0)])
def test_the_norm_of_what_is_no_list_of_tensors_gets_a_sentence(function):
    """A lone tensor must not be taken for the list of its rows, which have no gradient: a norm of 0."""
    parameter = tensor(np.ones((2, 3), np.float32), requires_grad=True)
    parameter.grad = np.ones((2, 3), np.float32)
    for wrong in (parameter, parameter.data, None, [("weight", parameter)]):
        with pytest.raises(UsageError, match="grad_norm: parameters must be a list of tensors"):
            function(wrong)


def test_clipping_in_the_step_equals_clipping_before_it():
    results = []
    for fused in (True, False):
        parameters, gradients = parameters_and_gradients(steps=1)
        optimizer = SGD(parameters, lr=1.0, momentum=0.5)
        for p, g in zip(parameters, gradients[0], strict=True):
            p.grad = g
        if fused:
            optimizer.step(grad_scale=clip_coefficient(grad_norm(parameters), 0.5))
        else:
            clip_grad_norm(parameters, 0.5)
            optimizer.step()
        results.append([p.data for p in parameters])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_raises_and_leaves_the_gradients(bad):
    p = tensor(np.zeros(2), requires_grad=True)
    p.grad = np.array([1.0, bad])
    assert not math.isfinite(grad_norm([p]))
    with pytest.raises(NonFiniteError, match=r"the norm of the gradients is (nan|inf)"):
        clip_grad_norm([p], 1.0)
    np.testing.assert_array_equal(p.grad, [1.0, bad])
