"""The gradient of the whole model, of any shape, against differences of its loss."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.drawing import seeds
from tests.ops.kernel_rule import EPS32
from tests.ops.test_checker import each_gradient
from tinygpt.function import Function
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.graph import no_grad
from tinygpt.kernel import use_kernels
from tinygpt.testing import STEP

IGNORE = -100


@st.composite
def configs(draw: Any, head_sizes: Any = (1, 4, 5, 8)) -> GPTConfig:
    n_head = draw(st.sampled_from([1, 2, 3]))
    return GPTConfig(
        vocab_size=draw(st.sampled_from([2, 5, 17, 66])),
        block_size=draw(st.sampled_from([1, 2, 9, 17])),
        n_layer=draw(st.sampled_from([1, 2, 3])),
        n_head=n_head,
        n_embd=n_head * draw(st.sampled_from(head_sizes)),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        bias=draw(st.booleans()),
    )


class Case:
    """A model with weights of a size that matters, a batch with ignored targets, and the loss at any weights."""

    def __init__(self, config: GPTConfig, batch: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.model = GPT(config, dtype="float64")
        self.model.train()
        self.parameters = dict(self.model.named_parameters())
        for name, parameter in self.parameters.items():
            is_scale = name.endswith("weight") and parameter.ndim == 1  # of a LayerNorm
            parameter.data = 0.3 * rng.standard_normal(parameter.shape) + is_scale
        self.weights = {name: parameter.data for name, parameter in self.parameters.items()}
        tokens = int(rng.integers(1, config.block_size + 1))
        self.idx, targets = rng.integers(0, config.vocab_size, (2, batch, tokens))
        self.targets = np.where(rng.random(targets.shape) < 0.25, IGNORE, targets)
        self.targets[0, 0] = targets[0, 0]
        self.directions = {name: rng.standard_normal(weight.shape) for name, weight in self.weights.items()}
        self.one = str(rng.choice(list(self.weights)))

    def loss(self, dtype: Any = np.float64, steps: float = 0.0, moved: Any = ()) -> Any:
        """The loss, `steps` along the directions of the parameters `moved`; the same dropout masks each time."""
        self.model.generator.load_state_dict({"seed": 7, "stream": 0})
        for name, parameter in self.parameters.items():
            weight = self.weights[name]
            parameter.data = (weight + steps * STEP * self.directions[name] if name in moved else weight).astype(dtype)
            parameter.grad = None
        return self.model.loss(self.idx, self.targets)

    def difference(self, moved: Any) -> float:
        """The derivative of the loss along the directions of these parameters, by four points."""
        stencil = ((-2, 1), (-1, -8), (1, 8), (2, -1))
        with no_grad():
            return sum(factor * self.loss(steps=steps, moved=moved).item() for steps, factor in stencil) / (12 * STEP)

    def gradient(self, dtype: Any = np.float64) -> dict[str, np.ndarray]:
        self.loss(dtype).backward()
        return {name: np.asarray(parameter.grad, np.float64) for name, parameter in self.parameters.items()}

    def along(self, gradient: dict[str, np.ndarray], moved: Any) -> float:
        return float(sum(np.vdot(gradient[name], self.directions[name]) for name in moved))


def cases(**options: Any) -> st.SearchStrategy[Case]:
    return st.builds(Case, configs(**options), st.sampled_from([1, 2, 5]), seeds)


def check(case: Case) -> None:
    """Along a random direction of all parameters, and along one of a single parameter, which others would drown."""
    gradient = case.gradient()
    for moved in (list(case.weights), [case.one]):
        expected = case.difference(moved)
        assert abs(case.along(gradient, moved) - expected) <= 1e-7 + 1e-6 * abs(expected), moved


@pytest.mark.parametrize("kind", ["auto", "reference"])
@given(case=cases())
def test_it_is_the_derivative(kind: str, case: Case) -> None:
    with use_kernels(kind):
        check(case)


def norm(gradient: dict[str, np.ndarray], other: dict[str, np.ndarray] | None = None) -> float:
    """Of a gradient of all parameters, or of the difference of two."""
    return float(np.sqrt(sum(((g - other[name] if other else g) ** 2).sum() for name, g in gradient.items())))


@settings(max_examples=15)
@given(case=cases(head_sizes=(4, 5, 8)))
def test_in_float32_it_is_off_by_no_more_than_the_roundings(case: Case) -> None:
    """At most twice as far as the reference bodies are, and a rounding for each operation on the way there and back.

    Of four channels or more: LayerNorm of one or two gives the same whatever they are, and what is left of its gradient
    is roundings.
    """
    true = case.gradient()
    with use_kernels("reference"):
        reference = norm(case.gradient(np.float32), true)
    roundings = 2 * (10 * case.model.config.n_layer + 4)
    assert norm(case.gradient(np.float32), true) <= 2 * reference + roundings * EPS32 * norm(true)


def nodes_of(loss: Any) -> set[type[Function]]:
    found, stack = set(), [loss.node]
    while stack:
        node = stack.pop()
        found.add(type(node))
        stack.extend(parent for parent in node.parents if isinstance(parent, Function))
    return found


def test_a_wrong_gradient_of_any_operation_in_it_is_noticed() -> None:
    case = Case(GPTConfig(17, 9, n_layer=2, n_head=2, n_embd=8, dropout=0.3), batch=3, seed=0)
    check(case)
    nodes = nodes_of(case.loss())
    assert {node.__name__ for node in nodes} >= {"Embedding", "Linear", "QKVAttention", "BiasGelu", "ResidualLayerNorm"}
    for node in nodes:
        with (
            patch.object(node, "backward", each_gradient(node, lambda grad: grad * 1.001, 0)),
            pytest.raises(AssertionError),
        ):
            check(case)
