"""Dropout masks are indexed by the row in the whole batch, however many processes share the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.kernel import REGISTRY
from tinygpt.random import Generator, words

RNG = np.random.default_rng(0)
KEY = (0.4, 11, 5)  # p, seed, stream


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def rows_of_dropout(body: Callable[..., Any], rows: slice, first: int) -> list[np.ndarray]:
    return [body(X[rows], *KEY, first)]


def rows_of_residual_forward(body: Callable[..., Any], rows: slice, first: int) -> list[np.ndarray]:
    return list(body(X[rows], Y[rows], None, W, None, 1e-5, *KEY, first)[:2])


def rows_of_residual_backward(body: Callable[..., Any], rows: slice, first: int) -> list[np.ndarray]:
    mean, rstd = STATISTICS
    return list(body(X[rows], Y[rows], Z[rows], W, mean[rows], rstd[rows], *KEY, False, False, first)[:2])


X, Y, Z, W = normal(20, 37), normal(20, 37), normal(20, 37), normal(37)
STATISTICS = REGISTRY["layer_norm_forward"].reference(Z, W, None, 1e-5)[1:]
CASES = {
    "dropout_apply": rows_of_dropout,
    "residual_layer_norm_forward": rows_of_residual_forward,
    "residual_layer_norm_backward": rows_of_residual_backward,
}


@pytest.mark.parametrize("kind", ["reference", "cython"])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_a_batch(name: str, kind: str) -> None:
    body = REGISTRY[name].variants().get(kind)
    if body is None:
        pytest.skip("the compiled kernels are not built")
    whole = CASES[name](body, slice(0, 20), 0)
    part = CASES[name](body, slice(6, 13), 6)
    assert all(np.array_equal(a[6:13], b) for a, b in zip(whole, part, strict=True))
    wrong = CASES[name](body, slice(6, 13), 0)
    assert not all(np.array_equal(a[6:13], b) for a, b in zip(whole, wrong, strict=True))


@pytest.mark.parametrize("kind", ["reference", "cython"])
def test_rows_of_attention(kind: str) -> None:
    forward, backward = (REGISTRY[f"attention_{way}"].variants().get(kind) for way in ("forward", "backward"))
    if forward is None or backward is None:
        pytest.skip("the compiled kernels are not built")
    B, H, T, D = 4, 2, 37, 8
    q, k, v, dy = (normal(B, H, T, D) for _ in range(4))

    def found(rows: slice, first: int) -> list[np.ndarray]:
        options = (True, 0.3, *KEY)
        y, lse = forward(q[rows], k[rows], v[rows], *options, first)
        grads = [np.zeros_like(q[rows]) for _ in range(3)]
        backward(dy[rows], q[rows], k[rows], v[rows], y, lse, *options, *grads, first)
        return [y, *grads]

    whole, part, other = found(slice(0, 4), 0), found(slice(1, 3), H * T), found(slice(1, 3), 0)
    for all_rows, rows, wrong in zip(whole, part, other, strict=True):
        assert np.array_equal(all_rows[1:3], rows)
        assert not np.array_equal(all_rows[1:3], wrong)


@pytest.mark.parametrize("shape", [{}, {"bias": False}])
def test_a_model_on_a_part_of_its_batch(shape: dict[str, Any]) -> None:
    """Logits in training mode, with dropout everywhere: those of the same rows in the whole batch."""
    config = tg.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.3, **shape)
    ids = RNG.integers(0, 11, (6, 8))

    def logits(rows: slice, before: int) -> np.ndarray:
        model = tg.GPT(config, seed=1).train()
        model.generator.rows_before = before
        return model(ids[rows]).numpy()

    whole = logits(slice(0, 6), 0)
    assert np.allclose(logits(slice(2, 5), 2), whole[2:5], rtol=1e-5, atol=1e-6)
    assert not np.allclose(logits(slice(2, 5), 0), whole[2:5], rtol=1e-2, atol=1e-2)


def test_where_it_is_kept() -> None:
    """It belongs to the process, not to the state of the run."""
    generator = Generator(3)
    generator.rows_before = 5
    assert generator.state_dict() == {"seed": 3, "stream": 0}
    generator.load_state_dict({"seed": 4, "stream": 1})
    assert generator.rows_before == 5
    x = tg.tensor(np.ones((2, 3, 4), np.float32))
    mask = tg.ops.dropout(x, 0.5, generator=generator).numpy().reshape(6, 4) > 0
    assert np.array_equal(mask, words(4, 1, 6, 4, first_row=15) >= 2**31)
