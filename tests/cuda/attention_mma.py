"""How far off attention on the tensor cores may be, and the sizes it is tested at. For right kernels and wrong ones.

The bound is derived from the kernels' roundings to 16 bits, each of at most one unit of a number: of the weights before
they meet the values, of ds before it meets keys and queries, of y, which delta is made of, and of each result. Sums in
float32 are allowed a fifth more; lse, which has float32's digits, a rounding for each term of a score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.cuda.emulator import Device
from tinygpt._ext.cuda.attention import attention
from tinygpt.ops.attention import attention_mask, scores

UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
SCALE, SEED, STREAM = 0.3, 2**40 + 1, 2**32 + 5
# (Tq, Tk, D, is_causal, dropout_p): tiles of 64 queries and keys, whole ones and one more; heads of 32, 64 and 128.
SIZES = [
    (70, 70, 24, True, 0.4),
    (65, 130, 32, False, 0.4),
    (130, 66, 40, True, 0.0),
    (64, 64, 64, True, 0.4),
    (33, 129, 128, False, 0.4),
    (129, 65, 104, True, 0.4),
    (1, 1, 8, True, 0.0),
]


def drawn(dtype: Any, *shape: int) -> np.ndarray:
    """(B, T, H, D) in memory, as the model has it; seen as (B, H, T, D)."""
    B, H, T, D = shape
    values = np.random.default_rng(T * 7 + D).standard_normal((B, T, H, D))
    return values.astype(np.float32).astype(dtype).transpose(0, 2, 1, 3)


def truth_and_bounds(dy: Any, q: Any, k: Any, v: Any, is_causal: bool, dropout_p: float, unit: float) -> Any:
    """[(y, by how much it may be off), the same of lse, dq, dk, dv], in float64."""
    dy, q, k, v = (x.astype(np.float64) for x in (dy, q, k, v))
    s = scores(q, k, is_causal, SCALE)  # (B, H, Tq, Tk)
    top = s.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(s - top).sum(axis=-1, keepdims=True))  # (B, H, Tq, 1)
    p = np.exp(s - lse)
    m = attention_mask(p, dropout_p, SEED, STREAM) if dropout_p else np.ones_like(p)
    a, y = p * m, (p * m) @ v
    delta = (dy * y).sum(axis=-1, keepdims=True)
    ds = p * (m * (dy @ v.swapaxes(-1, -2)) - delta) * SCALE
    off_y = unit * (a @ abs(v) + abs(y))
    off_ds = unit * abs(ds) + SCALE * p * (abs(dy) * off_y).sum(axis=-1, keepdims=True)
    turned = partial(np.swapaxes, axis1=-1, axis2=-2)
    return [
        (y, off_y),
        (lse[..., 0], q.shape[-1] * 2.0**-24 * SCALE * (abs(q) @ turned(abs(k))).max(axis=-1)),
        (ds @ k, off_ds @ abs(k) + unit * abs(ds @ k)),
        (turned(ds) @ q, turned(off_ds) @ abs(q) + unit * abs(turned(ds) @ q)),
        (turned(a) @ dy, unit * (turned(a) @ abs(dy) + abs(turned(a) @ dy))),
    ]


def results_of(device: Device, dtype: Any, size: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(dy, q, k, v), (y, lse, dq, dk, dv) of two heads by the launchers."""
    Tq, Tk, D, is_causal, dropout_p = size
    dy, q, k, v = (drawn(dtype, 1, 2, T, D) for T in (Tq + 1, Tq, Tk, Tk + 1))
    dy, v = dy[:, :, :Tq], v[:, :, :Tk]
    k = np.ascontiguousarray(k.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    v = np.ascontiguousarray(v.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    options = (is_causal, SCALE, dropout_p, SEED, STREAM)
    y, lse = attention.attention_forward(device, q, k, v, *options)
    gradients = [device.empty((1, x.shape[2], 2, D), dtype).transpose(0, 2, 1, 3) for x in (q, k, v)]
    attention.attention_backward(device, dy, q, k, v, y, lse, *options, *gradients)
    return [dy, q, k, v], [y, lse, *gradients]


def on_tensor_cores(device: Device, dtype: Any, size: Any) -> None:
    """Each result is within its bound, and it is these kernels that made it."""
    begin = len(device.launched)
    given, found = results_of(device, dtype, size)
    files = [file for file, _ in device.launched[begin:]]
    assert files == ["attention_mma", "attention", "attention_mma", "attention_mma"]  # the second is delta
    _, _, _, is_causal, dropout_p = size
    found[1] = found[1].astype(np.float64).sum(axis=-1)  # of its two parts
    expected = truth_and_bounds(*given, is_causal, dropout_p, UNITS[np.dtype(dtype).name])
    for name, got, (truth, bound) in zip(("y", "lse", "dq", "dk", "dv"), found, expected, strict=True):
        off = np.abs(got.astype(np.float64) - truth)
        assert (off <= 1.2 * bound + 1e-6).all(), f"{name} is off by {np.nanmax(off / (bound + 1e-9)):.3g} bounds"


def far_from_zero(device: Device, is_causal: bool) -> None:
    """Scores of 2**18 and a little, exact in float32, over three tiles: results are those of the same scores near zero.

    A float32 lse of that size is off by up to 0.02, so its second part shows in 16 bits too.
    """
    rng = np.random.default_rng(0)
    q, k = (2 * rng.integers(-2, 3, (1, 2, 130, 8)).astype(np.float16) for _ in range(2))
    v, dy = (rng.standard_normal((1, 2, 130, 8)).astype(np.float16) for _ in range(2))
    results = []
    for far in (0, 2**11):
        q[..., 0], k[..., 0] = far, far
        options = (is_causal, 2.0**-4, 0.0, 0, 0)
        y, lse = attention.attention_forward(device, q, k, v, *options)
        gradients = [device.empty(q.shape, np.float16) for _ in range(3)]
        attention.attention_backward(device, dy, q, k, v, y, lse, *options, *gradients)
        dq, dk, dv = (gradient.astype(np.float32) for gradient in gradients)
        results.append([y.astype(np.float32), dq[..., 1:], dk[..., 1:], dv])
    assert {file for file, _ in device.launched} == {"attention_mma", "attention"}
    for name, near, got in zip(("y", "dq", "dk", "dv"), *results, strict=True):
        off = np.abs(near - got).max() / np.abs(near).max()
        assert off <= 2 * UNITS["float16"], f"{name} far from zero is off by {off:.2g} of its greatest number"


CHECKS: tuple[Callable[[Device], None], ...] = (
    *(partial(on_tensor_cores, dtype=np.float16, size=size) for size in SIZES[:6]),
    partial(far_from_zero, is_causal=True),
    partial(far_from_zero, is_causal=False),
)
