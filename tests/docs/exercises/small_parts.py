"""Arithmetic, shapes, relatives, and what writes text."""

from __future__ import annotations

import numpy as np

import tinygpt as tg
from tinygpt.ops.packed import from_bfloat16, pack, to_bfloat16

from . import Names, check, differences, gradients, numbers, same


@check("arithmetic", "ratio_backward")
def arithmetic(names: Names) -> None:
    a, b, dy = np.exp(numbers(4, 1)), np.exp(numbers(3)), numbers(4, 3)
    same(names["ratio_backward"](dy, a, b), gradients(lambda a, b: a / (a + b), dy, a, b))


@check("elementwise", "softplus_backward")
def elementwise(names: Names) -> None:
    x, dy = numbers(6), numbers(6, seed=1)
    same(names["softplus_backward"](dy, np.log1p(np.exp(x))), differences(lambda x: np.log1p(np.exp(x)), x, dy), 1e-6)


@check("reductions", "std_backward")
def reductions(names: Names) -> None:
    x = numbers(6)
    same(names["std_backward"](1.7, x), gradients(lambda x: tg.ops.var(x).sqrt(), np.array(1.7), x)[0])


@check("erf", "normal_density")
def erf(names: Names) -> None:
    x = numbers(5)
    expected = gradients(lambda x: (1 + tg.ops.erf(x * np.sqrt(0.5))) / 2, np.ones(5), x)[0]
    same(names["normal_density"](x), expected)


@check("cast", "steps")
def cast(names: Names) -> None:
    for update in (2.0**-9, 2.0**-12):
        master, count = np.float32(1), 0
        while from_bfloat16(to_bfloat16(np.array([master])))[0] == 1:
            master, count = master + np.float32(update), count + 1
        assert names["steps"](update) == count


@check("shape", "merge_heads")
def shape(names: Names) -> None:
    x, dy = numbers(2, 3, 8), numbers(2, 4, 3, 2)
    same(names["merge_heads"](dy), gradients(lambda x: x.reshape(2, 3, 4, 2).transpose((0, 2, 1, 3)), dy, x)[0])


@check("concatenate", "rotate_backward")
def concatenate(names: Names) -> None:
    x, dy = numbers(5), numbers(5, seed=1)
    for k in (0, 1, 3, 5):
        same(names["rotate_backward"](dy, k), gradients(lambda x, k=k: tg.cat([x[k:], x[:k]]), dy, x)[0])


@check("getitem", "differences_backward")
def getitem(names: Names) -> None:
    x, dy = numbers(6), numbers(5)
    same(names["differences_backward"](dy), gradients(lambda x: x[1:] - x[:-1], dy, x)[0])


@check("where", "safe_sqrt")
def where(names: Names) -> None:
    x = tg.tensor([-1.0, 0.0, 1e-6, 9.0], dtype="float64", requires_grad=True)
    y = names["safe_sqrt"](x)
    same(y.data, np.array([0.0, 0.0, 1e-3, 3.0]))
    y.backward([1.0, 1.0, 2.0, 2.0])
    same(x.grad, np.array([0.0, 0.0, 1000.0, 1 / 3]))


@check("rms_norm", "unit_backward")
def rms_norm(names: Names) -> None:
    x, dy = numbers(5), numbers(5, seed=1)
    same(names["unit_backward"](dy, x), gradients(lambda x: x / (x * x).sum().sqrt(), dy, x)[0])


@check("silu", "swiglu_backward")
def silu(names: Names) -> None:
    dy, a, b = (numbers(6, seed=seed) for seed in range(3))
    same(names["swiglu_backward"](dy, a, b), gradients(lambda a, b: tg.ops.silu(a) * b, dy, a, b))


@check("binary_cross_entropy", "weighted_backward")
def binary_cross_entropy(names: Names) -> None:
    def loss(x: np.ndarray, t: float) -> np.ndarray:
        sigma = 1 / (1 + np.exp(-x))
        return -5.0 * t * np.log(sigma) - (1 - t) * np.log(1 - sigma)

    for t in (0.0, 1.0, 0.3):
        x = numbers(1)
        expected = differences(lambda x, t=t: loss(x, t), x, np.ones(1))[0]
        same(float(np.squeeze(names["weighted_backward"](x[0], t, 5.0))), expected, 1e-6)


@check("cached_attention", "cache_bytes")
def cached_attention(names: Names) -> None:
    arrays = [np.zeros((2, 7, 16), np.float32) for _ in range(3 * 2)]  # 3 layers: keys and values (H, T, D), C = 32
    assert names["cache_bytes"](3, 32, 7, 4) == sum(array.nbytes for array in arrays)


@check("decode_block", "seconds")
def decode_block(names: Names) -> None:
    config = tg.GPTConfig(vocab_size=5, block_size=4, n_layer=3, n_head=2, n_embd=16)
    matrices = [p.data.nbytes for _, p in tg.GPT(config).h[0].named_parameters() if p.ndim == 2]
    same(names["seconds"](3, 16, 4, 1e6), 3 * sum(matrices) / 1e6)


@check("packed", "quantize")
def packed(names: Names) -> None:
    W = numbers(9, 4).astype(np.float32)
    matrix, (q, scale) = pack(W, "int8"), names["quantize"](W)
    assert np.asarray(q).dtype == np.int8
    same(q, matrix.data)
    same(np.ravel(scale), np.ravel(matrix.scale), 1e-6)


@check("packed_linear", "adapter_backward")
def packed_linear(names: Names) -> None:
    dy, x, W, A, B = numbers(5, 4), numbers(5, 3), numbers(3, 4), numbers(3, 2), numbers(2, 4)
    expected = gradients(lambda x, A, B: x @ tg.Tensor(W) + (x @ A) @ B, dy, x, A, B)
    same(names["adapter_backward"](dy, x, W, A, B), expected)
