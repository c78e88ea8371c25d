"""Sequential, ModuleList and activations as modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import nn
from tinygpt.errors import DtypeError, RangeError, UsageError


def perceptron() -> nn.Sequential:
    tg.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1), nn.ReLU())


def test_sequential_calls_its_modules_in_order() -> None:
    model, x = perceptron(), tg.randn(5, 4)
    expected = model[3](model[2](model[1](model[0](x))))
    assert np.array_equal(model(x).data, expected.data)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    other = perceptron()
    other.load_state_dict(model.state_dict())
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert nn.Sequential()(x) is x


def test_a_sequential_shows_its_modules() -> None:
    assert repr(perceptron()).splitlines() == [
        "Sequential: 49 parameters",
        "  0: Linear(weight (4, 8), bias (8,))",
        "  1: GELU(approximate='none')",
        "  2: Linear(weight (8, 1), bias (1,))",
        "  3: ReLU",
    ]


def test_a_module_list_is_a_list_and_a_module() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    model = Stack()
    assert len(model.layers) == 12
    assert model.layers[-1] is model.layers[11] is list(model.layers)[11]
    assert model.layers[10:] == [model.layers[10], model.layers[11]]
    assert [name for name, _ in model.named_parameters()][-1] == "layers.11.bias"
    model.layers.append(nn.Linear(2, 3)).extend([nn.ReLU()])
    assert model(tg.ones(1, 2)).shape == (1, 3)
    assert model.eval().layers[13].training is False


def test_activations() -> None:
    x = tg.randn(3, 4)
    assert np.array_equal(nn.ReLU()(x).data, x.relu().data)
    assert np.array_equal(nn.GELU()(x).data, x.gelu("none").data)
    assert np.array_equal(nn.GELU("tanh")(x).data, x.gelu().data)


def test_wrong_uses() -> None:
    with pytest.raises(DtypeError, match="Sequential: takes modules, not list"):
        nn.Sequential([nn.ReLU()])  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="ModuleList: there is no module 2: it holds 1"):
        nn.ModuleList([nn.ReLU()])[2]
    with pytest.raises(UsageError, match="GELU: approximate must be 'none' or 'tanh', not 'erf'"):
        nn.GELU("erf")
