"""The CUDA bodies for writing, on the emulator: blocks in every format of weights, and what the references take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda.cases import emulated
from tests.cuda.emulator import COMPILER, Device
from tests.ops.blocks import PARAMETERS, array_at, put
from tests.ops.cases.packed import FORMATS, normal
from tests.ops.drawing import lay_out
from tests.ops.test_decode_block import check, drawn
from tinygpt._ext import cuda
from tinygpt.gpt import ACTIVATIONS
from tinygpt.kernel import use_kernels
from tinygpt.ops.packed import Matrix, pack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++, c++ or clang++; CXX names another)"),
]
PLAIN = ("float32", None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMATS)
def test_a_block_in_every_format(form: Any, bias: bool) -> None:
    in_the_emulator(form, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_block_of_every_variant(activation: str, bias: bool) -> None:
    in_the_emulator(PLAIN, bias, activation=activation, inner=30, scale=0.2)


def in_the_emulator(form: Any, bias: bool, **variant: Any) -> None:
    device = Device(schedule=2)
    with emulated(device), use_kernels("cython"):
        check(drawn(2, 20, [0, 5, 130, 17], 140, form, bias, **variant))
    launched = {kernel.partition("<")[0] for _, kernel in device.launched}
    assert {"attend_to_cache", "join_pieces"} <= launched
    assert ("few_rows_product" in launched) == (form != PLAIN)


def declined(name: str, *arguments: Any) -> bool:
    """Whether the CUDA body leaves these arguments to the reference, without a launch."""
    device = Device()
    body = cuda.body(device, name)
    assert body is not None
    return body(*arguments) is NotImplemented and not device.launched


@pytest.mark.parametrize("name", ["few_rows_product", "few_rows_product_transposed", "unpack_into"])
def test_weights_that_the_kernels_do_not_take(name: str) -> None:
    rng = np.random.default_rng(0)
    axis = int(name == "few_rows_product_transposed")
    right = pack(normal(rng, 48, 48), "int8", axis, 16)
    x, out = normal(rng, 3, 48), normal(rng, 3, 48)
    wrong = {
        "float32": Matrix(normal(rng, 48, 48)),
        "strided": right._replace(data=lay_out(right.data, "F")),
        "float64 scales": right._replace(scale=right.scale.astype(np.float64)),
        "strided scales": right._replace(scale=lay_out(right.scale, "strided")),
        "too few scales": right._replace(scale=right.scale[:1] if axis == 0 else right.scale[:, :1].copy()),
        "no scales": Matrix(right.data),
        "scales of bfloat16": right._replace(data=right.data.astype(np.uint16)),
    }

    def arguments(matrix: Matrix, x: Any = x, out: Any = out) -> list[Any]:
        if name == "unpack_into":
            return [normal(rng, 48, 48).astype(x.dtype), matrix, axis]
        return [x, matrix, out] if axis else [x, matrix]

    assert not declined(name, *arguments(right))
    for what, matrix in wrong.items():
        assert declined(name, *arguments(matrix)), what
    assert declined(name, *arguments(right, x.astype(np.float64), out.astype(np.float64)))
    if name != "unpack_into":
        assert declined(name, *arguments(right, x[:, :40].copy()))
    if axis:
        assert declined(name, *arguments(right, x, out[:2]))


def test_blocks_that_the_kernels_do_not_take() -> None:
    """Wide heads, arrays that do not fit together, weights of other types and layouts."""
    x, block, keys, values, length = drawn(2, 20, [3, 9], 12, PLAIN)
    assert not declined("decode_block", x, block, keys, values, length, None)
    wide = drawn(1, 129, [3, 9], 12, PLAIN)
    cases = [
        (*wide, None),
        (x, block, keys[:1], values[:1], length, None),
        (x, block, keys, values[:, :, :11].copy(), length, None),
        (x, block, keys[..., :19].copy(), values[..., :19].copy(), length, None),
        (x, block, keys, values, length[:1], None),
        (x, block, keys.astype(np.float64), values.astype(np.float64), length, None),
    ]
    blocks = {
        "ln_1.weight": lay_out(array_at(block, "ln_1.weight").copy(), "strided"),
        "attn.c_attn.bias": array_at(block, "attn.c_attn.bias").astype(np.float64),
        "mlp.c_fc.bias": array_at(block, "mlp.c_fc.bias")[:-1].copy(),
        "mlp.c_fc.weight": array_at(block, "mlp.c_fc.weight")[:, :-1].copy(),
        "mlp.c_proj.weight": array_at(block, "mlp.c_proj.weight").astype(np.float64),
    }
    for name, value in blocks.items():
        other = drawn(2, 20, [3, 9], 12, PLAIN)[1]
        put(other, name, value)
        cases.append((x, other, keys, values, length, None))
    heads = drawn(2, 20, [3, 9], 12, PLAIN)[1]
    heads.attn.n_head = 4
    cases.append((x, heads, keys, values, length, None))
    assert all(declined("decode_block", *case) for case in cases)
    in_float64 = drawn(2, 20, [3, 9], 12, PLAIN)[1]
    for name in PARAMETERS:
        put(in_float64, name, array_at(in_float64, name).astype(np.float64))
    put(in_float64, "attn.c_attn.weight", pack(array_at(block, "attn.c_attn.weight"), "int8"))
    doubled = [a.astype(np.float64) for a in (x, keys, values)]
    assert declined("decode_block", doubled[0], in_float64, doubled[1], doubled[2], length, None)
