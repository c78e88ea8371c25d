"""What the rows do not reach: numbers that are no ids, infinities, and rows far from zero. For right kernels and wrong.

Each check takes the device that the CUDA bodies run on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

import tinygpt.ops
import tinygpt.optim  # noqa: F401  the kernels of both are registered
from tests.cuda.attention_mma import CHECKS as ON_TENSOR_CORES
from tests.cuda.emulator import Device
from tests.ops.kernel_rule import EPS32
from tinygpt._ext import cuda
from tinygpt._ext.cuda.decode.decode_block import attend
from tinygpt._ext.cuda.linear import add_up
from tinygpt.kernel import REGISTRY
from tinygpt.ops.packed import pack, unpack_into


def body(device: Device, kernel: str) -> Callable[..., Any]:
    found = cuda.body(device, kernel)
    assert found is not None
    return found


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def is_nan(*arrays: np.ndarray) -> bool:
    return all(bool(np.isnan(a).all()) for a in arrays)


def targets_outside(device: Device) -> None:
    """Neither a class nor ignore_index: the row is NaN, nothing outside of the arrays is touched."""
    logits, targets = normal(6, 36), np.array([0, 35, 36, -1, 2**40, -7])
    losses, lse = body(device, "cross_entropy_forward")(logits, targets, -7)
    dlogits = body(device, "cross_entropy_backward")(np.ones(6, np.float32), logits, targets, lse, -7)
    right = REGISTRY["cross_entropy_forward"].reference(logits[:2], targets[:2], -7)[0]
    for loss, gradient in (
        (losses, dlogits),
        (body(device, "cross_entropy_inplace")(logits, targets, -7, 1.0), logits),
    ):
        assert np.allclose(loss[:2], right, rtol=1e-5)
        assert is_nan(loss[2:5], gradient[2:5])
        assert loss[5] == 0
        assert np.isfinite(gradient[:2]).all()
        assert not gradient[5].any()


def ids_outside(device: Device) -> None:
    """Rows of NaN; in the backward pass they are left out."""
    weight, ids = normal(5, 12), np.array([0, 4, 5, -1, 2**40])
    y = body(device, "embedding_forward")(weight, ids)
    assert np.array_equal(y[:2], weight[[0, 4]])
    assert (y[2:].view(np.uint32) == 0x7FC00000).all()  # the kernel's own NaN, not one that was there
    for outside, count in ((5, 70), (-1, 70), (5, 3), (-1, 3)):  # across pieces and inside of one
        ids = np.array([0, 4, *[outside] * count])
        dy = normal(len(ids), 12)
        dweight = np.zeros((5, 12), np.float32)
        body(device, "embedding_backward")(dy, ids, dweight)
        assert np.array_equal(dweight[[0, 4]], dy[:2])
        assert not dweight[1:4].any()


def runs_at_the_edges_of_pieces(device: Device) -> None:
    """Runs of one id that begin or end with a piece of 32 positions, or one before or behind it."""
    dweight = np.ones((2, 301), np.float32)  # three blocks side by side
    body(device, "embedding_backward")(np.ones((40, 301), np.float32), np.zeros(40, np.int64), dweight)
    assert np.array_equal(dweight, np.repeat([[41.0], [1.0]], 301, axis=1))
    for first in (31, 32, 33, 64):
        for second in (1, 31, 32, 33, 64, 65):
            for third in (32, 40):
                ids = np.repeat([2, 0, 1], [first, second, third])
                dy = normal(len(ids), 4)
                expected, dweight = np.ones((2, 3, 4), np.float32)
                REGISTRY["embedding_backward"].reference(dy, ids, expected)
                body(device, "embedding_backward")(dy, ids, dweight)
                assert np.allclose(dweight, expected, rtol=0, atol=1e-5)


def rows_far_from_zero(device: Device) -> None:
    """Deviations of a millionth of the mean: a mean rounded to float32 would be off by a few hundredths of them."""
    x = (1000 + 1e-3 * np.random.default_rng(0).standard_normal((4, 256))).astype(np.float32)
    weight, bias = np.ones(256, np.float32), None
    truth = REGISTRY["layer_norm_forward"].reference(x.astype(np.float64), weight.astype(np.float64), bias, 1e-12)[0]
    reference = REGISTRY["layer_norm_forward"].reference(x, weight, bias, 1e-12)[0]
    y = body(device, "layer_norm_forward")(x, weight, bias, 1e-12)[0]
    assert abs(y - truth).max() <= 2 * abs(reference - truth).max() + EPS32


def normalised_far_away(device: Device) -> None:
    """There and back at 8192, where deviations are units in the last place, and up to the largest number."""
    near = 2.0**-10 * np.random.default_rng(0).integers(-1, 2, (5, 36))
    dy, dsum, weight = normal(5, 36), np.zeros((5, 36), np.float32), normal(36)
    rounded = (near + 8192).astype(np.float32), (3e38 * np.sign(near)).astype(np.float32)
    for exact, x in ((near, rounded[0]), (3e38 * np.sign(near), rounded[1])):
        wide = [a.astype(np.float64) for a in (exact, weight, dy)]
        y, mean, rstd = REGISTRY["layer_norm_forward"].reference(*wide[:2], None, 1e-12)
        right = (y, *REGISTRY["layer_norm_backward"].reference(wide[2], *wide[:2], mean, rstd, False)[:2])
        y, mean, rstd = body(device, "layer_norm_forward")(x, weight, None, 1e-12)
        alone = (y, *body(device, "layer_norm_backward")(dy, x, weight, mean, rstd, False)[:2])
        key = (0.0, 0, 0)
        _, y, mean, rstd = body(device, "residual_layer_norm_forward")(x, dsum, None, weight, None, 1e-12, *key)
        arguments = (dy, dsum, x, weight, mean, rstd, *key, False, False)
        dx, _, _, dweight, _ = body(device, "residual_layer_norm_backward")(*arguments)
        for found in (alone, (y, dx, dweight)):
            for got, true in zip(found, right, strict=True):
                assert np.abs(got - true).max() <= 4e-6 * np.abs(true).max()


def logits_far_from_zero(device: Device) -> None:
    """The gradient is that of the same logits near zero."""
    near, targets = 8.0 * np.random.default_rng(0).integers(0, 2, (5, 36)), np.arange(5)
    p = np.exp(near) / np.exp(near).sum(axis=1, keepdims=True)
    losses = -np.log(p[np.arange(5), targets])
    p[np.arange(5), targets] -= 1
    x = (near + 1e8).astype(np.float32)
    found, lse = body(device, "cross_entropy_forward")(x, targets, -100)
    gradient = body(device, "cross_entropy_backward")(np.ones(5, np.float32), x, targets, lse, -100)
    again = body(device, "cross_entropy_inplace")(x, targets, -100, 1.0)
    for got, right in ((found, losses), (again, losses), (gradient, p), (x, p)):
        assert np.abs(got - right).max() <= 1e-6 * np.abs(right).max()


def scores_far_from_zero(device: Device) -> None:
    """Scores of 2**24 and a few, all even, which float32 holds: results are those of the same scores near zero."""
    rng = np.random.default_rng(0)
    q, k = (rng.integers(-2, 3, (1, 2, 40, 8)).astype(np.float32) * 2 for _ in range(2))
    v, dy = (rng.standard_normal((1, 2, 40, 8)).astype(np.float32) for _ in range(2))
    results = []
    for far in (0.0, 2.0**12):
        q[..., 0], k[..., 0] = far, far
        options = (False, 1.0, 0.0, 0, 0)
        y, lse = body(device, "attention_forward")(q, k, v, *options)
        gradients = [np.zeros_like(q) for _ in range(3)]
        body(device, "attention_backward")(dy, q, k, v, y, lse, *options, *gradients)
        results.append([y, gradients[0][..., 1:], gradients[1][..., 1:], gradients[2]])
    for near, got in zip(*results, strict=True):
        assert np.abs(near - got).max() <= 4e-6 * np.abs(near).max()


def infinities_in_gelu(device: Device) -> None:
    x, dy = np.array([np.inf, -np.inf, np.nan], np.float32), np.ones(3, np.float32)
    for form in ("gelu", "gelu_erf"):
        assert np.array_equal(body(device, f"{form}_forward")(x), np.float32([np.inf, 0, np.nan]), equal_nan=True)
        assert np.array_equal(body(device, f"{form}_backward")(dy, x), np.float32([1, 0, np.nan]), equal_nan=True)


def streams_counted_from_memory(device: Device, kernel: str, *arguments: Any, key: int) -> None:
    """A launch that finds the beginning of its streams in memory draws the masks of the streams counted from there.

    key: which argument is the stream.
    """
    begin = 2**33 + 5

    def found(stream: int) -> list[Any]:
        given = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        given[key] = stream
        made = body(device, kernel)(*given)
        made = made if isinstance(made, tuple) else (made,)
        return [a for a in (*made, *given) if isinstance(a, np.ndarray)]

    expected = found(begin + 7 + 2**20)
    device.rng_stream_base = (3, np.array([begin + 2**20], np.uint64))  # captured when streams began at 3
    moved = found(3 + 7)
    device.rng_stream_base = (0, None)
    assert all(np.array_equal(a, b) for a, b in zip(moved, expected, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(found(7), expected, strict=True))


def streams_of_dropout(device: Device) -> None:
    streams_counted_from_memory(device, "dropout_apply", normal(3, 36), 0.4, 11, 0, key=3)


def streams_of_residual_layer_norm(device: Device) -> None:
    a, b, weight = normal(3, 36), normal(4, 36)[:3], normal(36)
    _, _, mean, rstd = body(device, "residual_layer_norm_forward")(a, b, None, weight, None, 1e-5, 0.0, 0, 0)
    forward = (a, b, None, weight, None, 1e-5, 0.4, 11, 0)
    streams_counted_from_memory(device, "residual_layer_norm_forward", *forward, key=8)
    backward = (b, a, a, weight, mean, rstd, 0.4, 11, 0, False, False)
    streams_counted_from_memory(device, "residual_layer_norm_backward", *backward, key=8)


def streams_of_attention(device: Device, dtype: Any = np.float32) -> None:
    q, k, v, dy = (normal(1, 2, 5, 8 + i)[..., :8].astype(dtype) for i in range(4))
    options = (True, 0.3, 0.4, 11, 0)
    y, lse = body(device, "attention_forward")(q, k, v, *options)
    streams_counted_from_memory(device, "attention_forward", q, k, v, *options, key=7)
    gradients = [np.zeros_like(q) for _ in range(3)]
    streams_counted_from_memory(device, "attention_backward", dy, q, k, v, y, lse, *options, *gradients, key=10)


def rows_of_dropout(device: Device) -> None:
    x, key, apply = normal(6, 36), (0.4, 11, 7), body(device, "dropout_apply")
    assert np.array_equal(apply(x[2:5], *key, 2), apply(x, *key)[2:5])


def rows_of_residual_layer_norm(device: Device) -> None:
    a, b, weight, key = normal(6, 36), normal(7, 36)[:6], normal(36), (0.4, 11, 7)
    forward, backward = (body(device, f"residual_layer_norm_{way}") for way in ("forward", "backward"))
    whole, part = (
        forward(a, b, None, weight, None, 1e-5, *key),
        forward(a[2:5], b[2:5], None, weight, None, 1e-5, *key, 2),
    )
    assert all(np.array_equal(x[2:5], y) for x, y in zip(whole, part, strict=True))
    mean, rstd = whole[2:]
    whole = backward(b, a, a, weight, mean, rstd, *key, False, False)
    part = backward(b[2:5], a[2:5], a[2:5], weight, mean[2:5], rstd[2:5], *key, False, False, 2)
    assert all(np.array_equal(x[2:5], y) for x, y in zip(whole[:2], part[:2], strict=True))


def rows_of_attention(device: Device, dtype: Any = np.float32) -> None:
    q, k, v, dy = (normal(3, 2, 5, 8 + i)[..., :8].astype(dtype) for i in range(4))
    options = (True, 0.3, 0.4, 11, 7)

    def found(rows: slice, first: int) -> list[np.ndarray]:
        y, lse = body(device, "attention_forward")(q[rows], k[rows], v[rows], *options, first)
        gradients = [np.zeros_like(q[rows]) for _ in range(3)]
        body(device, "attention_backward")(dy[rows], q[rows], k[rows], v[rows], y, lse, *options, *gradients, first)
        return [y, *gradients]

    for whole, part in zip(found(slice(0, 3), 0), found(slice(1, 3), 2 * 5), strict=True):
        assert np.array_equal(whole[1:], part)


def several_groups(device: Device) -> None:
    """Scales that change along a sum, at places that are multiples of a pack and at others."""
    rng = np.random.default_rng(0)
    for K, N, group in ((96, 32, 16), (160, 528, 32), (72, 40, 24), (40, 9, 8)):
        for axis, shape in ((0, (K, N)), (1, (N, K))):
            matrix = pack(rng.standard_normal(shape).astype(np.float32), "int8", axis, group)
            weights = unpack_into.reference(np.empty(shape, np.float32), matrix, axis)
            out = np.empty(shape, np.float32)
            assert np.array_equal(body(device, "unpack_into")(out, matrix, axis), weights)
            for M in (1, 3):
                x = normal(M, K)
                if axis == 0:
                    y = body(device, "few_rows_product")(x, matrix)
                else:
                    y = body(device, "few_rows_product_transposed")(x, matrix, np.empty((M, N), np.float32))
                expected = x.astype(np.float64) @ (weights if axis == 0 else weights.T)
                assert np.abs(y - expected).max() <= K * EPS32 * np.abs(expected).max()


def cache(device: Device, q: np.ndarray, keys: np.ndarray, values: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Attention of queries (M, H, D) over a cache, whose newest tokens are zeros; the queries' H x D in one row."""
    M, H, D = q.shape
    qkv = np.concatenate([q.reshape(M, 1, H, D), np.zeros((M, 2, H, D), q.dtype)], axis=1)
    return attend(device, qkv.reshape(M, 3 * H * D), None, keys, values, length)


def the_best_key_anywhere(device: Device) -> None:
    """Scores so far apart that exp overflows unless the greatest, wherever it is, has been taken away.

    Heads that move in packs, and others.
    """
    length = np.array([256])
    for place, D in itertools.product((0, 1, 31, 32, 100, 127, 128, 130, 255), (31, 32)):
        q, keys, values = normal(1, 1, D), np.zeros((1, 1, 257, D), np.float32), normal(1, 1, 257, D)
        keys[0, 0, place] = 100 * q[0, 0]
        assert np.allclose(cache(device, q, keys, values, length)[0], values[0, 0, place], rtol=1e-5, atol=1e-5)


def lengths_outside(device: Device) -> None:
    """The row is NaN, and its cache is as it was; the other rows are right."""
    length = np.array([3, 4, -1, 2**40, 0])
    q, keys, values = normal(5, 2, 8), normal(5, 2, 4, 8), normal(6, 2, 4, 8)[:5].copy()
    new_keys, new_values = keys.copy(), values.copy()
    with patch.object(device, "empty", np.ones):  # a table that nobody has written does not give NaN by itself
        y = cache(device, q, new_keys, new_values, length)
    assert is_nan(y[1:4])
    assert np.isfinite(y[[0, 4]]).all()
    assert not new_keys[0, :, 3].any()
    assert np.array_equal(new_keys[1:4], keys[1:4])
    assert np.array_equal(new_values[1:4], values[1:4])
    assert np.array_equal(new_keys[0, :, :3], keys[0, :, :3])


def tables_of_sums(device: Device) -> None:
    """One, two and three vectors added up in one launch, each from its own table and into its own place."""
    for wanted in ((True,), (False, True, True), (True, True, True)):
        tables = normal(sum(wanted), 37, 70)
        sums = add_up(device, tables, *wanted)
        assert [total is not None for total in sums] == list(wanted)
        found = [total for total in sums if total is not None]
        assert np.allclose(found, tables.sum(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-5)


def steps_that_are_left_out(device: Device) -> None:
    """After a norm that is not finite there is no factor until the state says otherwise; the norm is told all along."""
    for sums, before, goes_on in (
        ([1.0, 3.0], 1.0, True),
        ([1.0, np.inf], 1.0, False),
        ([np.nan, 3.0], 1.0, False),
        ([1.0, 3.0], 0.0, False),
    ):
        state = np.array([9.0, 9.0, before])
        body(device, "clip_scale")(np.array(sums), state, 2.0, 0.5)
        assert np.array_equal(state[1], np.sqrt(np.sum(sums)) / 2, equal_nan=True)
        assert np.array_equal(state[[0, 2]], [0.5 * 0.5 / state[1], 1.0] if goes_on else [np.nan, 0.0], equal_nan=True)


def weights_rounded_on_the_way(device: Device) -> None:
    """The copy in 16 bits is that of the new weights, which are those of an update without one; or nothing is changed.

    Sizes of a part of a pack, of whole packs, of several blocks; and a parameter without a copy between two with one.
    """
    for factor, sizes in ((0.5, (3, 4096, 9001)), (0.5, (1028, 4100, 64)), (np.nan, (5, 5, 5))):
        calls, plain = [], []
        for i, size in enumerate(sizes):
            p, g, m, v = (normal(size + j)[:size].copy() for j in range(4))
            arrays, settings = [p, g, m, np.abs(v)], (1e-2 * (i + 1), 0.9, 0.99, 1e-8, 0.1, 7 + i, factor)
            copy = None if i == 1 else np.ones(size, np.float16)
            calls.append((*[array.copy() for array in arrays], *settings, copy))
            plain.append((*arrays, *settings))
        body(device, "adamw_update_each")(calls)
        body(device, "adamw_update_each")(plain)
        for call, other in zip(calls, plain, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(call[:4], other[:4], strict=True))
            if call[-1] is not None:
                expected = np.ones_like(call[-1]) if np.isnan(factor) else other[0].astype(np.float16)
                assert np.array_equal(call[-1], expected)


def tokens_of_odd_rows(device: Device) -> None:
    """A logit that is not finite gives -1; small temperatures, numbers of any size make no infinities."""
    logits, number = normal(6, 530), np.array([0, 2**52, 2**53 - 1, 12345, 2**51, 2**52])  # more than there are threads
    logits[1, 529], logits[2, 0], logits[3, 300] = np.inf, np.nan, -np.inf
    logits[4], logits[5] = 3e38 * np.sign(logits[4]), 0 * logits[5]  # zeros of both signs
    logits[0, 500] = 9.0  # found by the last warp
    for size, settings in (
        (529, (1.0, 0, 1.0)), (530, (0.0, 0, 1.0)), (529, (1e-300, 3, 0.5)), (530, (0.5, 40, 0.9)),
        (529, (1.0, 0, 1e-18)), (530, (1.0, 0, 0.6)),
    ):  # fmt: skip
        found = body(device, "sample_tokens")(logits, number, size, *settings)
        expected = REGISTRY["sample_tokens"].reference(logits, number, size, *settings)
        assert np.array_equal(found, expected), (settings, size, found, expected)
        assert (found[1:4] < 0).sum() == 3 - (size == 529)
    for size, u, token in ((64, 1 - 2.0**-53, 63), (64, 0.5, 32), (1024, 513 / 1024, 513), (1024, 0.5, 512)):
        drawn = np.array([int(u * 2**53)])  # in the last thread; at the border of two chunks, or of two tokens of one
        assert body(device, "sample_tokens")(np.zeros((1, size), np.float32), drawn, size, 1.0, 0, 1.0) == token


def tokens_that_are_kept(device: Device) -> None:
    """The very tokens of the reference, of few and of many; of neighbouring floats; the largest logit is the last."""
    rng = np.random.default_rng(0)
    logits, number = rng.standard_normal((12, 70)).astype(np.float32), rng.integers(0, 2**53, 12)
    logits[::2, 69] = 4.0
    near = (1 + rng.permuted(np.tile(np.arange(70), (12, 1)), axis=1) * 2.0**-23).astype(np.float32)
    for x in (logits, near, -near):
        for settings in (
            (1.0, 1, 1.0), (1.0, 2, 1.0), (1.0, 3, 1.0), (1.0, 4, 1.0), (2.0, 40, 1.0), (1.0, 0, 0.9), (1.0, 0, 0.5),
            (1.5, 30, 0.7), (0.0, 0, 1.0), (1.0, 0, 0.03), (1.0, 0, 1.0),
        ):  # fmt: skip
            found = body(device, "sample_tokens")(x, number, 70, *settings)
            expected = REGISTRY["sample_tokens"].reference(x, number, 70, *settings)
            assert np.array_equal(found, expected), (settings, found, expected)


CHECKS: dict[str, tuple[Callable[[Device], None], ...]] = {
    "sample_tokens": (tokens_that_are_kept, tokens_of_odd_rows),
    "adamw": (weights_rounded_on_the_way,),
    "cross_entropy": (targets_outside, logits_far_from_zero),
    "clip": (steps_that_are_left_out,),
    "linear": (tables_of_sums,),
    "embedding": (ids_outside, runs_at_the_edges_of_pieces),
    "layer_norm": (rows_far_from_zero, normalised_far_away),
    "gelu": (infinities_in_gelu,),
    "dropout": (streams_of_dropout, rows_of_dropout),
    "residual_layer_norm": (streams_of_residual_layer_norm, rows_of_residual_layer_norm, normalised_far_away),
    "attention": (streams_of_attention, rows_of_attention, scores_far_from_zero),
    "attention_mma": (
        partial(streams_of_attention, dtype=np.float16),
        partial(rows_of_attention, dtype=np.float16),
        *ON_TENSOR_CORES,
    ),
    "packed": (several_groups,),
    "decode_block": (the_best_key_anywhere, lengths_outside),
}
