"""Weights of four bits: how they are rounded and where they lie, by definitions of their own; models that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygpt as tg
from tests.generation.helpers import make
from tests.ops.cases.packed import check_unpacking, compiled, drawn_matrix, normal
from tests.ops.drawing import LAYOUTS, lay_out, seeds
from tinygpt.kernel import use_kernels
from tinygpt.nn.packed import PackedLinear
from tinygpt.ops._four_bits import BLOCK, STEPS, round_columns
from tinygpt.ops.packed import Matrix, from_bfloat16, pack, rows_of, unpack, unpack_into

FORM = ("int4", None)
TINY = 2.0**-126

lengths = st.sampled_from([32, 64, 96, 320])
counts = st.sampled_from([1, 7, 15, 16, 17, 33, 100])


def taken_apart(matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """q and scale of each weight (K, N), in float64, read from memory by the definition of the format."""
    k, n = np.ogrid[: matrix.weight_shape()[0], : matrix.weight_shape()[1]]
    memory = matrix.data.view(np.uint8).reshape(*matrix.data.shape, 4)
    byte = memory[n // 16, k // 8, n % 16, k % 4].astype(int)
    half = np.where(k % 8 < 4, byte & 15, byte >> 4)
    return half - 16.0 * (half >= 8), from_bfloat16(matrix.scale)[n // 16, k // 32, n % 16].astype(np.float64)


def error_of_q4_0(weight: np.ndarray) -> np.ndarray:
    """The squared error (groups, N) of llama.cpp's q4_0 before its scale is rounded."""
    groups = weight.astype(np.float64).reshape(-1, 32, weight.shape[1])
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1, keepdims=True), 1)
    scale = np.where(extreme == 0, 1, extreme / -8)
    q = np.clip(np.floor(groups / scale + 8.5), 0, 15) - 8
    return ((groups - q * scale) ** 2).sum(axis=1)


def check(weight: np.ndarray) -> Matrix:
    """weight (K, N): each q is the nearest one, and no group is worse than in q4_0, but for the rounding of a scale."""
    matrix = pack(weight, "int4")
    q, scale = taken_apart(matrix)
    w = weight.astype(np.float64)
    assert matrix.format == "int4"
    assert (np.abs(scale) >= TINY).all()
    assert np.array_equal(unpack(matrix), (q * scale).astype(np.float32))
    nearest = np.clip(np.rint(w / scale), -8, 7)
    tie = np.abs(np.abs(w / scale - np.rint(w / scale)) - 0.5) < 1e-6  # the division rounds
    assert ((q == nearest) | tie).all()
    error = ((w - q * scale) ** 2).reshape(-1, 32, w.shape[1]).sum(axis=1)
    most = np.abs(w).reshape(-1, 32, w.shape[1]).max(axis=1)
    assert (error <= error_of_q4_0(weight) + 0.01 * (most / 8) ** 2)[most > 100 * TINY].all()  # 2.7 is usual
    return matrix


@settings(max_examples=30)
@given(K=lengths, N=counts, seed=seeds, exponent=st.integers(-60, 60))
def test_each_weight_is_rounded_to_the_nearest_and_no_group_is_worse_than_in_q4_0(
    K: int, N: int, seed: int, exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = normal(rng, K, N, std=2.0**exponent) * rng.integers(0, 2, (K, N)).astype(np.float32)
    weight[:, rng.integers(N)] = 0
    weight[: 32 * int(rng.integers(2))] = 0
    matrix = check(weight)
    assert (unpack(matrix)[weight == 0] == 0).all()


def test_the_squared_error_is_smaller_than_that_of_q4_0() -> None:
    weight = normal(np.random.default_rng(0), 32, 20000)
    error = ((weight - unpack(pack(weight, "int4"))) ** 2).sum()
    assert 0.88 < error / error_of_q4_0(weight).sum() < 0.91


def test_weights_that_fit_are_stored_exactly() -> None:
    """Whole numbers from -8 to 7 times any scale of few bits."""
    rng = np.random.default_rng(0)
    q = rng.integers(-8, 8, (64, 40))
    q[0], q[32] = -8, -8
    scale = np.where(rng.integers(0, 2, 40), 0.375, -(2.0**70))
    weight = (q * scale).astype(np.float32)
    assert np.array_equal(unpack(check(weight)), weight)
    assert not unpack(check(np.zeros((32, 3), np.float32))).any()


def test_the_largest_and_the_smallest_floats() -> None:
    """The very largest become infinite, as in bfloat16: their scale is rounded up."""
    largest, smallest = np.float32(2.0**127), np.finfo(np.float32).smallest_subnormal
    for value in (largest, -largest, smallest, -smallest, np.float32(TINY), np.float32(-5 * TINY)):
        weight = np.zeros((32, 2), np.float32)
        weight[3, 0], weight[4, 1] = value, value
        with np.errstate(all="raise", under="ignore"):
            found = unpack(check(weight))
        assert np.isfinite(found).all()
        assert np.abs(found.astype(np.float64) - weight).max() <= max(abs(float(value)) / 64, TINY)


def test_by_hand() -> None:
    """1 .. 4 and -1 .. -4 halves, with the scale -0.5, since -8 stands for the largest: 4."""
    weight = np.zeros((32, 17), np.float32)
    weight[:8, 16] = [4, 0.5, -0.5, 1, -3.5, 2, -2, 3]
    matrix = pack(weight, "int4")
    assert matrix.data.shape == (2, 4, 16)
    assert matrix.scale.shape == (2, 1, 16)
    assert from_bfloat16(matrix.scale[1, 0, :1])[0] == -0.5
    # -8, -1, 1, -2 in the low halves of the bytes, 7, -4, 4, -6 in the high ones
    assert matrix.data[1, 0, 0] == 0xAE_41_CF_78
    assert not matrix.data[1, 1:, 0].any()


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "broadcast"])
def test_any_layout_any_axis_and_several_pieces(layout: str) -> None:
    rng = np.random.default_rng(0)
    for K, N in ((64, 50), (96, BLOCK // 96 + 40)):
        weight = normal(rng, K, N)
        expected = pack(weight, "int4")
        assert np.array_equal(expected.data[-1], pack(weight[:, N // 16 * 16 :].copy(), "int4").data[0])
        for axis, array in ((0, weight.copy()), (1, weight.T.copy())):
            got = pack(lay_out(array, layout), "int4", axis)
            assert got.weight_shape(axis) == array.shape
            for one, other in ((got.data, expected.data), (got.scale, expected.scale)):
                assert np.array_equal(one, other)
            whole = unpack(expected)
            assert np.array_equal(unpack(got, axis), whole if axis == 0 else whole.T)


def test_the_same_weights_give_the_same_bits_everywhere() -> None:
    """A run that trains an adapter on a packed base knows the base by its bits, on whatever machine it goes on."""
    import zlib

    weight = normal(np.random.default_rng(0), 320, 70)
    matrix = pack(weight, "int4")
    assert zlib.crc32(matrix.data.tobytes() + matrix.scale.tobytes()) == 2787616977


@given(C=lengths, V=counts, seed=seeds)
def test_rows_of_an_embedding(C: int, V: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = drawn_matrix(rng, (V, C), FORM, 1)
    for count in (0, 1, 50):
        ids = rng.integers(0, V, count)
        rows = rows_of(matrix, ids)
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert np.array_equal(rows, unpack(matrix, 1)[ids])


@compiled
@pytest.mark.parametrize("axis", [0, 1])
def test_compiled_unpacking_is_exact(axis: int, threads: Any) -> None:
    for K, N in [(32, 1), (32, 40), (96, 16), (320, 129), (64, 700)]:
        shape = (K, N) if axis == 0 else (N, K)
        matrix = check_unpacking(shape, FORM, axis, threads)
        with use_kernels("cython"), pytest.raises(ValueError, match="broadcast"):
            unpack_into(np.zeros((shape[0] + 1, shape[1] + 1), np.float32), matrix, axis)


@compiled
def test_compiled_rounding_has_the_bits_of_the_reference(threads: Any) -> None:
    """Of weights of every size, zeros and ties among them."""
    rng, steps = np.random.default_rng(0), np.array(STEPS, np.float32)
    for K, N in [(32, 16), (160, 48), (96, 400)]:
        weight = normal(rng, K, N) * np.float32(2) ** rng.integers(-40, 40, (K, N)).astype(np.float32)
        weight[:, ::5] = rng.integers(-8, 8, weight[:, ::5].shape) / 2
        weight[:, 3] = 2.0**-149 * rng.integers(-9, 9, K)
        weight[:32, 1] = 0
        weight[:, 6] = normal(rng, K, std=2e37)
        with np.errstate(under="ignore"):
            expected = round_columns.reference(weight, steps)
        for count in (1, 2, 3, 8):
            threads(count)
            with use_kernels("cython"):
                got = round_columns(weight, steps)
            for one, other in zip(got, expected, strict=True):
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)


def test_bytes() -> None:
    """Half a byte for a weight, two bytes for 32 of them, and room for sixteen outputs."""
    matrix = pack(normal(np.random.default_rng(0), 64, 48), "int4")
    assert matrix.nbytes == 64 * 48 // 2 + 2 * 2 * 48
    assert (matrix.size, matrix.weight_shape(), matrix.weight_shape(1)) == (64 * 48, (64, 48), (48, 64))
    assert pack(normal(np.random.default_rng(0), 64, 33), "int4").nbytes == matrix.nbytes


# Refusals ----------------------------------------------------------------------------------------


def refused(function: Any, sentence: str) -> None:
    with pytest.raises(tg.UsageError) as error:
        function()
    assert str(error.value) == sentence


OTHERS = "choose int8 or bfloat16"


def test_sums_that_are_no_multiple_of_32() -> None:
    for shape, axis, count in (((48, 64), 0, 48), ((64, 31), 1, 31), ((0, 4), 0, 0)):
        refused(
            lambda shape=shape, axis=axis: pack(np.ones(shape, np.float32), "int4", axis),
            f"pack: int4 packs 32 terms of a sum together, but this matrix has sums of {count}: {OTHERS}",
        )
    refused(
        lambda: pack(np.ones((32, 32), np.float32), "int4", 0, 32),
        "pack: group=32 is for int8 only, not for int4: leave it out",
    )
    for value in (np.nan, np.inf, -np.inf):
        weight = np.ones((32, 4), np.float32)
        weight[31, 3] = value
        words = "pack: the weights hold nan or inf, which a packed matrix can't"
        refused(lambda weight=weight: pack(weight, "int4"), words)


def test_a_model_whose_sizes_do_not_fit_is_left_as_it_is() -> None:
    for changes, where, count in (({}, "h.0.attn.c_attn", 16), ({"n_embd": 32, "n_inner": 40}, "h.0.mlp.c_proj", 40)):
        model = make(np.float32, **changes)
        refused(
            lambda model=model: model.pack("int4"),
            f"GPT.pack: int4 packs 32 terms of a sum together, but {where} has sums of {count}: {OTHERS}",
        )
        assert model.packed is None
        assert model.train().training


# Models ------------------------------------------------------------------------------------------

IDX = np.random.default_rng(0).integers(0, 13, (3, 6))


def test_a_packed_model_is_the_model_of_its_rounded_weights() -> None:
    plain, model = make(np.float32, n_embd=64), make(np.float32, n_embd=64)
    count = model.num_parameters()
    assert model.pack("int4") is model
    assert (model.packed, model.num_parameters(), model.training) == ("int4", count, False)
    modules = dict(plain.named_modules())
    for path, layer in model.named_modules():
        if layer.packed_size():
            modules[path].weight.data = unpack(layer.matrix, 0 if isinstance(layer, PackedLinear) else 1)
    plain.eval()
    for idx in (IDX, IDX[:1, :1], np.tile(IDX, (4, 1))):
        assert np.allclose(model(idx).data, plain(idx).data, rtol=0, atol=2e-5)
        assert np.allclose(model.next_logits(idx).data, plain.next_logits(idx).data, rtol=0, atol=2e-5)
    generated = model.generate(IDX[:, :3], max_new_tokens=12, do_sample=False)
    assert np.array_equal(generated, plain.generate(IDX[:, :3], max_new_tokens=12, do_sample=False))
    targets = np.where(IDX == 3, -100, IDX[:, ::-1])
    assert abs(model.loss(IDX, targets).item() - plain.loss(IDX, targets).item()) < 2e-5


def test_packing_in_four_bits_is_off_by_what_they_promise() -> None:
    exact, off = make(np.float32, n_embd=64).eval()(IDX).data, {}
    for format in ("int8", "int4"):
        model = make(np.float32, n_embd=64).pack(format)
        off[format] = np.abs(model(IDX).data - exact).max() / np.abs(exact).max()
    assert off["int8"] < off["int4"] < 0.5
