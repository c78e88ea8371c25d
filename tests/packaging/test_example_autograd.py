"""examples/autograd_in_one_page.py: its gradients are tinygpt's on random graphs, and it is one page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ops import random_graphs
from tests.ops.random_graphs import Builder, Chooser, Program

PATH = Path(__file__).parents[2] / "examples" / "autograd_in_one_page.py"


@pytest.fixture(scope="module")
def page() -> Any:
    spec = importlib.util.spec_from_file_location("autograd_in_one_page", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def product(a: Any, b: Any, swap: bool = False, turn: bool = False) -> Any:
    """Its product takes matrices: a vector becomes a row or a column, and loses that axis again."""
    a, b = (b, a) if swap else (a, b.transpose(1, 0) if turn else b)
    y = (a if a.data.ndim > 1 else a[None, :]) @ (b if b.data.ndim > 1 else b[:, None])
    y = y if b.data.ndim > 1 else y[..., 0]
    return y if a.data.ndim > 1 else y[0] if b.data.ndim == 1 else y[..., 0, :]


def total(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    axes = tuple(range(x.data.ndim)) if axis is None else axis
    kept = x.data.sum(axis=axes, keepdims=True).shape
    return x.sum(axes).reshape(kept) if keepdims else x.sum(axes)


TABLE: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a + b * -1.0,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a * b**-1.0,
    "neg": lambda a: a * -1.0,
    "affine": lambda x: x * (-2.0 / 3.0) + 2.0,
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "sqrt": lambda x: x**0.5,
    "tanh": lambda x: x.tanh(),
    "relu": lambda x: x.relu(),
    "sum": total,
    "mean": lambda x, **how: total(x, **how) * (total(x, **how).data.size / x.data.size if x.data.size else 1.0),
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, axes: x.transpose(*axes) if axes else x.reshape(()),
    "getitem": lambda x, key: x[key],
    "matmul": product,
    "linear": lambda x, w, b=None: product(x, w) if b is None else product(x, w) + b,
    "softmax": lambda x, axis: x.exp() * total(x.exp(), axis, True) ** -1.0,
}


def gradients(page: Any, program: Program) -> tuple[list[np.ndarray], dict[int, Any]]:
    leaves = {i: page.Value(leaf.array) for i, leaf in program.leaves.items()}
    values = random_graphs.values_of(program, leaves, TABLE)
    for root, upstream, times in program.roots:
        for _ in range(times):
            values[root].backward(upstream)
    return [value.data for value in values], {i: leaf.grad for i, leaf in leaves.items()}


def programs(monkeypatch: pytest.MonkeyPatch, count: int) -> list[Program]:
    """Random graphs of the operations that the page has or that two lines make of them."""
    chosen = [operation for operation in random_graphs.OPERATIONS if operation.name in TABLE]
    assert len(chosen) == len(TABLE)
    monkeypatch.setattr(random_graphs, "OPERATIONS", chosen)
    return [Builder(Chooser([8, number]).integer, 12).program for number in range(count)]


def test_its_gradients_are_tinygpts(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    for program in programs(monkeypatch, 60):
        values, grads = random_graphs.gradients(program, np.float64)
        ours, found = gradients(page, program)
        assert random_graphs.worst(values, ours) < 1e-9, str(program)
        for i, leaf in program.leaves.items():
            if leaf.requires_grad:
                expected, got = grads[i], found[i]
                assert (expected is None) == (got is None), str(program)
                if expected is not None:
                    assert got.shape == expected.shape, str(program)
                    scale = 1 + np.abs(expected).max(initial=0.0)
                    assert random_graphs.worst([expected], [got]) <= 1e-9 * scale, str(program)
                    compared += 1
    assert compared > 100


def test_a_wrong_rule_is_noticed(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two sums over repeated operands is left out, and its gradient is off by a thousandth."""
    monkeypatch.setattr(page, "unbroadcast", lambda dy, x: 1.001 * dy)
    wrong = 0
    for program in programs(monkeypatch, 20):
        _, grads = random_graphs.gradients(program, np.float64)
        try:
            _, found = gradients(page, program)
        except ValueError:  # arrays that do not fit together
            wrong += 1
            continue
        pairs = [(grads[i], found[i]) for i, leaf in program.leaves.items() if leaf.requires_grad]
        wrong += any(a is not None and (a.shape != b.shape or not np.allclose(a, b, atol=1e-6)) for a, b in pairs)
    assert wrong > 5


def test_it_is_one_page() -> None:
    engine, _, _ = PATH.read_text(encoding="utf-8").partition("# The engine ends here.")
    lines = [line for line in engine.partition("import numpy as np\n")[2].splitlines() if line.strip()]
    assert len(lines) <= 66


def test_it_runs(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page.main()
    first, *steps = capsys.readouterr().out.splitlines()
    assert first.startswith("one page and tinygpt: gradients differ by at most ")
    assert float(first.split()[-1]) < 1e-14
    losses = [float(line.split()[-1]) for line in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.01
