"""The error of every operation in float32 beside PyTorch's own, by the rule in `extremes.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.compat import torch
from tests.ops.cases import ROWS
from tests.ops.extremes import (
    CASES,
    FRACTIONS,
    TARGETS,
    Arrays,
    C,
    Case,
    broken,
    errors_of,
    examples,
    moved,
    truth_of,
    upstream,
    worst,
)

F = torch.nn.functional
targets, fractions = torch.tensor(TARGETS), torch.tensor(FRACTIONS)


def residual_layer_norm(residual: Any, x: Any, weight: Any, bias: Any, x_bias: Any) -> Any:
    total = residual + (x + x_bias)
    return total, F.layer_norm(total, (C,), weight, bias)


THEIRS: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in ("add", "sub", "mul", "div", "pow", "exp", "tanh", "sigmoid", "relu")},
    **{name: getattr(torch, name) for name in ("erf", "log", "sqrt")},
    "square": lambda x: x**2,
    "to the power of -1.5": lambda x: x**-1.5,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu with erf": F.gelu,
    "bias_gelu": lambda x, bias: F.gelu(x + bias, approximate="tanh"),
    "sum": lambda x: torch.sum(x, dim=1),
    "mean": lambda x: torch.mean(x, dim=1),
    "var": lambda x: torch.var(x, dim=1),
    "max": lambda x: torch.amax(x, dim=1),
    "min": lambda x: torch.amin(x, dim=1),
    "abs": torch.abs,
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "cross_entropy": lambda x: F.cross_entropy(x, targets),
    "linear_cross_entropy": lambda x, weight: F.cross_entropy(x @ weight.T, targets),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy_with_logits(x, fractions.to(x.dtype)),
    "layer_norm": lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias),
    "residual_layer_norm": residual_layer_norm,
    "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "attention of all": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
}
THEIRS |= {row.name: functools.partial(row.torch, torch) for row in ROWS if row.numerics and row.torch is not None}


def run_theirs(case: Case, arrays: Arrays) -> Arrays:
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    returned = THEIRS[case.name](*tensors)
    outputs = returned if isinstance(returned, tuple) else (returned,)
    for i, y in enumerate(outputs):
        y.backward(torch.tensor(upstream(i, tuple(y.shape))), retain_graph=i + 1 < len(outputs))
    return [y.detach().numpy() for y in outputs] + [t.grad.numpy() for t in tensors]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_error_is_at_most_twice_that_of_pytorch(case: Case) -> None:
    found = []
    for what, draws in examples(case):
        truths = [truth_of(case, arrays) for arrays in draws]
        theirs = worst([run_theirs(case, arrays) for arrays in draws], truths)
        allowed = worst([moved(case, a, t) for a, t in zip(draws, truths, strict=True)], truths)
        for kind in ("auto", "reference"):
            found += broken(f"{what} ({kind})", errors_of(case, draws, truths, kind), theirs, allowed)
    assert found == []
