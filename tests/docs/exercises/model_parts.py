"""The parts of a GPT, and several steps in one pass."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import tinygpt as tg

from . import Names, check, differences, gradients, numbers, same


@check("softmax", "dx_of_temperature")
def softmax(names: Names) -> None:
    x, dy = numbers(5), numbers(5, seed=1)
    for T in (0.5, 3.0):
        y = tg.ops.softmax(tg.tensor(x / T)).data
        same(names["dx_of_temperature"](y, dy, T), gradients(lambda x, T=T: tg.ops.softmax(x / T), dy, x)[0])


@check("cross_entropy", "dx_of_smoothing")
def cross_entropy(names: Names) -> None:
    x, e, V = numbers(6), 0.2, 6
    q = np.full(V, e / V)
    q[4] += 1 - e
    p = tg.ops.softmax(tg.tensor(x)).data
    expected = gradients(lambda x: -(tg.ops.log_softmax(x) * q), np.ones(V), x)[0]
    same(names["dx_of_smoothing"](p, 4, e), expected)
    same(np.exp(np.log([2, 8]).mean()), 4.0)  # the perplexity


@check("layer_norm", "backward")
def layer_norm(names: Names) -> None:
    x, weight, bias, dy = numbers(4, 6), numbers(6), numbers(6, seed=1), numbers(4, 6, seed=2)
    expected = gradients(lambda *given: tg.ops.layer_norm(*given, eps=0.1), dy, x, weight, bias)
    same(names["backward"](dy, x, weight, 0.1), expected)


@check("gelu", "slope", "quick_gelu_backward")
def gelu(names: Names) -> None:
    for x in (-2.0, 0.3, 1.7):
        at = np.array([x])
        same(names["slope"](x), differences(lambda x: tg.ops.gelu(tg.tensor(x), "none").data, at, np.ones(1))[0], 1e-6)
    same(names["slope"](-0.751792), 0.0, 1e-6)  # the minimum of the first answer
    x, dy = numbers(7), numbers(7, seed=1)
    expected = gradients(lambda x: x * tg.ops.sigmoid(1.702 * x), dy, x)[0]
    same(names["quick_gelu_backward"](dy, x), expected)


@check("matmul", "dw")
def matmul(names: Names) -> None:
    x, w = numbers(5, 3), numbers(3)
    same(names["dw"](x, w), gradients(lambda w: (tg.tensor(x) @ w) ** 2, np.ones(5), w)[0])


@check("linear", "head_backward")
def linear(names: Names) -> None:
    x, E, dlogits = numbers(4, 3), numbers(7, 3), numbers(4, 7)
    same(names["head_backward"](dlogits, x, E), gradients(lambda x, E: x @ E.transpose(), dlogits, x, E))


@check("embedding", "both")
def embedding(names: Names) -> None:
    ids, dx = np.array([[0, 3, 3], [3, 1, 0]]), numbers(2, 3, 4)
    wte, wpe = numbers(5, 4), numbers(3, 4)
    expected = gradients(lambda wte, wpe: tg.ops.embedding(wte, ids) + tg.ops.embedding(wpe, range(3)), dx, wte, wpe)
    same(names["both"](dx, ids, 5), expected)


@check("attention", "attention_backward")
def attention(names: Names) -> None:
    dy, q, k, v = (numbers(5, 3, seed=seed) for seed in range(4))

    def one_head(*given: tg.Tensor) -> tg.Tensor:
        return tg.ops.attention(*(tensor.reshape(1, 1, 5, 3) for tensor in given), scale=0.4).reshape(5, 3)

    same(names["attention_backward"](dy, q, k, v, 0.4), gradients(one_head, dy, q, k, v))


@check("dropout", "moments")
def dropout(names: Names) -> None:
    for x, p in ((1.5, 0.25), (-2.0, 0.9)):
        values, chances = np.array([0.0, x / (1 - p)]), np.array([p, 1 - p])
        mean = (values * chances).sum()
        same(names["moments"](x, p), (mean, ((values - mean) ** 2 * chances).sum()))


@check("bias_gelu", "bias_relu_backward")
def bias_gelu(names: Names) -> None:
    dy, x, bias = numbers(4, 3, seed=1), numbers(4, 3), numbers(3)
    same(names["bias_relu_backward"](dy, x, bias), gradients(lambda x, bias: tg.ops.relu(x + bias), dy, x, bias))


@check("residual_layer_norm", "gradients")
def residual_layer_norm(names: Names) -> None:
    for a, n in ((0.1, 12), (-0.3, 5)):
        x = tg.tensor(1.0, dtype="float64", requires_grad=True)
        y = z = x
        for _ in range(n):
            y, z = y + a * y, a * z
        y.backward()
        with_it = float(x.grad)
        x.zero_grad()
        z.backward()
        same(names["gradients"](a, n), (with_it, float(x.grad)))


@check("linear_cross_entropy", "loss_and_gradients")
def linear_cross_entropy(names: Names) -> None:
    x, weight, targets = numbers(7, 3), numbers(5, 3), np.array([0, 4, 2, 2, 1, 3, 0])
    x_, weight_ = (tg.tensor(array, requires_grad=True) for array in (x, weight))
    loss = tg.ops.linear_cross_entropy(x_, weight_, targets)
    loss.backward()
    for R in (1, 3, 7):
        found = names["loss_and_gradients"](x, weight, targets, R)
        same(found, (loss.item(), x_.grad, weight_.grad))
    assert memory(names["loss_and_gradients"], numbers(256, 2), numbers(256, 2), np.arange(256), 2) < 256 * 256 * 8


def memory(function: Callable[..., Any], *arguments: Any) -> int:
    """The most bytes that a call holds at once; NumPy's arrays are counted, however they were computed."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
