"""What the rows of `cases/neural.py` do not say about attention: its mask, its alignment, its dropout, its memory."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from tinygpt import ops
from tinygpt.kernel import use_kernels
from tinygpt.ops.attention import attention_composed, attention_forward
from tinygpt.ops.dropout import dropout_mask
from tinygpt.random import Generator
from tinygpt.tensor import Tensor

rng = np.random.default_rng(21)
both_bodies = pytest.mark.parametrize("kind", ["reference", "auto"])


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(array, requires_grad=True) for array in arrays]


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def qkv(B: int, H: int, Tq: int, Tk: int, D: int) -> list[np.ndarray]:
    return [normal(B, H, Tq, D), normal(B, H, Tk, D), normal(B, H, Tk, D)]


@both_bodies
def test_a_causal_mask_hides_what_comes_later(kind: str) -> None:
    """Changing token 6 of 10 changes nothing before it, bit for bit, and something from it on."""
    q, k, v = qkv(2, 2, 10, 10, 4)
    changed = [a.copy() for a in (q, k, v)]
    for array in changed:
        array[:, :, 6] += 5.0
    with use_kernels(kind):
        y, y_changed = (ops.attention(*map(Tensor, arrays)).data for arrays in ((q, k, v), changed))
        free, free_changed = (ops.attention(*map(Tensor, a), is_causal=False).data for a in ((q, k, v), changed))
    assert np.array_equal(y[:, :, :6], y_changed[:, :, :6])
    assert not np.isclose(y[:, :, 6:], y_changed[:, :, 6:]).any()
    assert not np.isclose(free, free_changed).any()


@both_bodies
@pytest.mark.parametrize(("Tq", "Tk"), [(1, 1), (1, 9), (9, 1), (5, 9), (9, 5)])
def test_causal_attention_is_aligned_at_the_top_left(kind: str, Tq: int, Tk: int) -> None:
    q, k, v = qkv(1, 1, Tq, Tk, 3)
    with use_kernels(kind):
        y = ops.attention(Tensor(q), Tensor(k), Tensor(v)).data
    for i in range(Tq):
        seen = slice(0, min(i + 1, Tk))
        s = k[0, 0, seen] @ q[0, 0, i] / math.sqrt(3)
        p = np.exp(s) / np.exp(s).sum()
        assert np.allclose(y[0, 0, i], p @ v[0, 0, seen], rtol=1e-12)


@both_bodies
def test_attention_to_one_token_is_that_token(kind: str) -> None:
    q, k, v = qkv(2, 3, 1, 1, 5)
    with use_kernels(kind):
        assert np.array_equal(ops.attention(Tensor(q), Tensor(k), Tensor(v)).data, v)


@both_bodies
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(
    ("Tq", "Tk", "D"),
    [
        (64, 67, 16),
        (65, 68, 16),
        (130, 133, 16),
        (256, 256, 64),
        (77, 200, 80),
        (203, 70, 33),
        (131, 1, 5),
        (2, 140, 3),
    ],
)
def test_long_attention_equals_its_oracle(kind: str, Tq: int, Tk: int, D: int, is_causal: bool) -> None:
    """Sizes at and beyond the tiles of the compiled bodies, with dropout, against the whole matrix."""
    arrays = qkv(1, 2, Tq, Tk, D)
    fused, composed = tensors(*arrays), tensors(*arrays)
    dy = normal(1, 2, Tq, D)
    with use_kernels(kind):
        y = ops.attention(*fused, is_causal=is_causal, dropout_p=0.2, generator=Generator(9))
        y.backward(dy)
    oracle = attention_composed(*composed, is_causal=is_causal, dropout_p=0.2, seed=9, stream=0)
    oracle.backward(dy)
    assert np.allclose(y.data, oracle.data, rtol=0, atol=1e-13)
    for a, b in zip(fused, composed, strict=True):
        assert np.allclose(a.grad, b.grad, rtol=0, atol=1e-12)


@both_bodies
def test_the_mask_of_attention_is_words(kind: str) -> None:
    """With all scores equal and v the identity, the output shows the mask itself."""
    B, H, T, p = 2, 3, 8, 0.4
    zeros, v = np.zeros((B, H, T, T)), np.broadcast_to(np.eye(T), (B, H, T, T))
    with use_kernels(kind):
        y = ops.attention(
            Tensor(zeros), Tensor(zeros), Tensor(v), is_causal=False, dropout_p=p, generator=Generator(4, stream=7)
        ).data
    mask = dropout_mask(p, 4, 7, B * H * T, T, zeros).reshape(B, H, T, T)
    assert np.allclose(y, mask / T, rtol=1e-14)


@both_bodies
def test_attention_with_huge_scores(kind: str) -> None:
    q, k, v = (100.0 * a for a in qkv(1, 1, 6, 6, 4))
    with use_kernels(kind):
        y = ops.attention(Tensor(q), Tensor(k), Tensor(v), is_causal=False).data
    assert np.allclose(y[0, 0], v[0, 0, (q[0, 0] @ k[0, 0].T).argmax(axis=1)])


def test_the_heads_of_packed_attention_are_views() -> None:
    """No array as large as q, k or v is made on the way in, and the merge of the heads is free."""
    B, T, C = 2, 256, 512
    qkv_tensor = Tensor(normal(B, T, 3 * C).astype(np.float32), requires_grad=True)
    y = ops.qkv_attention(qkv_tensor, 8)
    assert y.data.flags.c_contiguous
    assert y.data.base is not None
    node: Any = y.node
    assert all(np.shares_memory(head, qkv_tensor.data) for head in node.heads(qkv_tensor.data, 8))


def test_the_compiled_bodies_hold_no_square_matrix() -> None:
    """Memory grows with T, not with T squared: one (T, T) matrix of float32 would take 16 MB here."""
    if len(attention_forward.variants()) == 1:
        pytest.skip("the extension is not built here, and the reference does hold the matrix")
    T = 2048
    q, k, v = (Tensor(normal(1, 1, T, 8).astype(np.float32), requires_grad=True) for _ in range(3))
    dy = np.ones((1, 1, T, 8), np.float32)
    tracemalloc.start()
    try:
        with use_kernels("cython"):
            ops.attention(q, k, v, dropout_p=0.1, generator=Generator(0)).backward(dy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20
