"""Products with biases and GELU on a GPU, by cuBLASLt. `pytest -m gpu` where there is one.

Which of them cuBLASLt has an algorithm for is its own affair; those that it has must be right, and none may fail. What
it is asked for is checked without a GPU, in tests/cuda/test_epilogues.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda.precision import EPS, IDS, TARGETS, model
from tests.gpu.test_precision import host, name, on_gpu  # noqa: F401
from tinygpt import backends
from tinygpt.ops.gelu import gelu_backward, gelu_forward

pytestmark = pytest.mark.gpu


def near(found: Any, truth: np.ndarray, eps: float) -> bool:
    """Within a few roundings of the largest number."""
    return found.shape == truth.shape and bool(np.abs(host(found) - truth).max() <= 4 * eps * np.abs(truth).max())


@pytest.mark.parametrize("sizes", [(64, 32, 96), (1, 8, 16), (1000, 768, 3072), (333, 40, 72)])
def test_results(name: str, sizes: tuple[int, int, int], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    N, C, D = sizes
    rng = np.random.default_rng(0)
    x, weight, bias, dy, z = (on_gpu(rng.standard_normal(s), name) for s in ((N, C), (C, D), (D,), (N, D), (N, C)))
    fused = backends.epilogues(x)
    if fused is None:
        pytest.skip(backends.get("cupy").describe_epilogues())
    y, eps = host(x) @ host(weight) + host(bias), EPS[name]
    for results, truths in (
        (fused.linear(x, weight, bias), [y]),
        (fused.linear_gelu(x, weight, bias), [gelu_forward(y), y]),
        (fused.linear_gelu(x, weight, None), [gelu_forward(y - host(bias)), y - host(bias)]),
        (fused.gelu_gradient(dy, weight, z), [gelu_backward(host(dy) @ host(weight).T, host(z))]),
        (fused.gradients(x, dy), [host(x).T @ host(dy), host(dy).sum(axis=0)]),
    ):
        if results is not None:
            several = results if isinstance(results, tuple) else (results,)
            assert all(near(found, truth, eps) for found, truth in zip(several, truths, strict=True))
    assert "is not used" not in capsys.readouterr().out


def test_a_model_learns_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Its gradients are those without epilogues, within the roundings to 16 bits."""
    found = gradients(name)
    monkeypatch.setattr("tinygpt.backends.cupy_epilogues.epilogues", lambda cupy: None)
    plain = gradients(name)
    for f, p in zip(found, plain, strict=True):
        assert np.abs(f - p).max() <= 32 * EPS[name] * np.abs(p).max()


def gradients(dtype: str) -> list[np.ndarray]:
    made = model().to("cupy")
    with made.compute_in(dtype):
        loss = made.loss(IDS, TARGETS)
    loss.backward(2.0**8)
    return [tg.backends.move(parameter.grad, "numpy") for parameter in made.parameters()]
