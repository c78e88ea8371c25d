"""Packed weights: how they are rounded, by definitions of their own; models that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygpt as tg
from tests.generation.helpers import make
from tests.ops.cases.packed import FORMATS, check_unpacking, compiled, drawn_matrix, normal
from tests.ops.drawing import LAYOUTS, lay_out, seeds
from tinygpt.errors import DtypeError, RangeError, ShapeError
from tinygpt.nn.packed import PackedEmbedding, PackedLinear
from tinygpt.ops import packed
from tinygpt.ops.packed import (
    Matrix,
    from_bfloat16,
    pack,
    rows_of,
    to_bfloat16,
    unpack,
)

SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST = float(np.finfo(np.float32).max)

# bfloat16 ----------------------------------------------------------------------------------------


def bfloat16_numbers() -> np.ndarray:
    """All that are not negative, in order, so that number i has the bits i; at the end 2**128, infinity's place."""
    bits = np.arange(0x7F81)
    exponent, fraction = bits >> 7, bits & 127
    subnormal = fraction * 2.0 ** (-126 - 7)
    with np.errstate(over="ignore"):
        others = (128.0 + fraction) * 2.0 ** (np.maximum(exponent, 1) - 127.0 - 7)
    return np.where(exponent == 0, subnormal, others)


def nearest_bfloat16(x: np.ndarray) -> np.ndarray:
    """The definition: the nearer neighbour, of two equally near ones the even one. float64 subtracts exactly here."""
    numbers, size = bfloat16_numbers(), np.abs(x.astype(np.float64))
    above = np.searchsorted(numbers, size)
    below = np.where(numbers[above] == size, above, above - 1)
    up, down = numbers[above] - size, size - numbers[below]
    bits = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (bits + 0x8000 * np.signbit(x)).astype(np.uint16)


def test_bfloat16_is_the_nearest_and_of_two_the_even_one() -> None:
    """Every sign, exponent and fraction, at each half, beside it, and at both ends."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    upper = np.arange(1 << 16, dtype=np.uint32)
    x = ((upper[:, None] << 16) | lower).view(np.float32).reshape(-1)
    x = x[np.isfinite(x)]
    assert len(x) == 2 * 0x7F80 * 6
    assert np.array_equal(to_bfloat16(x), nearest_bfloat16(x))


def test_bfloat16_by_hand() -> None:
    for x, bits in [
        (0.0, 0x0000), (-0.0, 0x8000), (1.0, 0x3F80), (-2.0, 0xC000),
        (1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82), (1 + 2**-8 + 2**-23, 0x3F81),  # two halves, and beyond one
        (2 - 2**-23, 0x4000), (SMALLEST, 0x0000), (2.0**-133, 0x0001), (LARGEST, 0x7F80), (-LARGEST, 0xFF80),
    ]:  # fmt: skip
        assert to_bfloat16(np.array([x], np.float32))[0] == bits, x


@given(seed=seeds)
def test_bfloat16_of_any_bits(seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 1 << 32, 5000, dtype=np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    assert np.array_equal(to_bfloat16(x), nearest_bfloat16(x))


def test_bfloat16_is_read_exactly() -> None:
    bits = np.arange(0x7F80, dtype=np.uint16)
    assert from_bfloat16(bits).dtype == np.float32
    assert np.array_equal(from_bfloat16(bits).astype(np.float64), bfloat16_numbers()[:-1])
    assert np.array_equal(from_bfloat16(bits + 0x8000).astype(np.float64), -bfloat16_numbers()[:-1])
    assert np.array_equal(to_bfloat16(from_bfloat16(bits)), bits)
    assert np.array_equal(from_bfloat16(np.array([0x7F80, 0xFF80], np.uint16)), [np.inf, -np.inf])


# int8 --------------------------------------------------------------------------------------------

groups = st.sampled_from([None, 8, 16, 24, 64, 1000])
sizes = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 33, 100])


def check_int8(weight: np.ndarray, axis: int, group: int | None) -> Matrix:
    """Each group by itself, in exact arithmetic: float64 holds q * scale and its distance from w."""
    matrix = pack(weight, "int8", axis, group)
    along, across = (weight, matrix.data) if axis == 0 else (weight.T, matrix.data.T)
    scales = matrix.scale if axis == 0 else matrix.scale.T
    length = group or len(along)
    assert matrix.data.dtype == np.int8
    assert matrix.scale.dtype == np.float32
    assert matrix.data.shape == weight.shape
    assert scales.shape == (-(-len(along) // length), along.shape[1])
    for g, row in enumerate(scales):
        w = along[g * length : (g + 1) * length].astype(np.float64)
        q, scale = across[g * length : (g + 1) * length].astype(np.float64), row.astype(np.float64)
        # w / scale is rounded to float32 before it is rounded to q: half a unit of the last place below 128.
        assert (np.abs(w - q * scale) <= scale * (0.5 + 2.0**-18)).all()
        assert np.abs(q).max() <= 127
        most = np.abs(w).max(axis=0)
        # No scale is larger than it must be, or bits would lie idle, but for weights near the smallest floats.
        fine = most >= 127 * 2.0**-126
        assert (scale >= 2.0**-126).all()
        assert (np.abs(q).max(axis=0)[fine] == 127).all()
        assert (np.abs(most[fine] / scale[fine] - 127) < 1e-4).all()
        assert (q[:, most == 0] == 0).all()
    return matrix


@given(
    shape=st.tuples(sizes, sizes), axis=st.sampled_from([0, 1]), group=groups, seed=seeds, exponent=st.integers(-30, 30)
)
def test_int8_is_half_a_scale_off_at_most(
    shape: tuple[int, int], axis: int, group: int | None, seed: int, exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = normal(rng, *shape, std=2.0**exponent) * rng.integers(0, 2, shape).astype(np.float32)
    weight[:, rng.integers(shape[1])] = 0  # a group of zeros in each axis
    weight[rng.integers(shape[0])] = 0
    check_int8(weight, axis, group)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("group", [None, 8, 24])
def test_int8_of_a_matrix_that_is_packed_in_several_pieces(axis: int, group: int | None) -> None:
    """Of nine rows each, with weights that grow from row to row and from column to column: no two scales are alike."""
    shape = (60, packed.BLOCK // 9)
    growing = np.float32(1.01) ** np.arange(60)[:, None] + np.arange(shape[1], dtype=np.float32)
    check_int8((normal(np.random.default_rng(0), *shape) * growing).astype(np.float32), axis, group)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("group", [None, 8])
def test_int8_of_tiny_weights(axis: int, group: int | None) -> None:
    """Where largest / 127 is subnormal, or none: whole numbers of the smallest float, from 1 up."""
    counts = np.concatenate([np.arange(1, 600), 2 ** np.arange(10, 24), 2 ** np.arange(10, 24) - 1])
    weight = np.zeros((len(counts), 20))
    weight[:, 3], weight[:, 4], weight[:, 17] = counts, -(counts // 2), -counts
    weight = (weight * SMALLEST).astype(np.float32)
    check_int8(weight if axis == 1 else weight.T.copy(), axis, group)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 2.0**-110, 1e38, -1e38])
def test_one_weight(value: float) -> None:
    for axis in (0, 1):
        matrix = check_int8(np.full((1, 1), value, np.float32), axis, None)
        assert np.isclose(unpack(matrix, axis)[0, 0], np.float32(value), rtol=1e-6, atol=0)


@given(shape=st.tuples(sizes, sizes), axis=st.sampled_from([0, 1]), form=st.sampled_from(FORMATS), seed=seeds)
def test_unpacked_element_by_element(shape: tuple[int, int], axis: int, form: Any, seed: int) -> None:
    matrix = drawn_matrix(np.random.default_rng(seed), shape, form, axis)
    whole = unpack(matrix, axis)
    assert whole.dtype == np.float32
    assert matrix.format == form[0]
    for k, n in np.random.default_rng(seed).integers(0, shape, (20, 2)):
        value = matrix.data[k, n]
        if form[0] == "bfloat16":
            value = from_bfloat16(matrix.data[k : k + 1, n])[0]
        elif form[0] == "int8":
            length = form[1] or shape[axis]
            value = np.float32(value) * (matrix.scale[k // length, n] if axis == 0 else matrix.scale[k, n // length])
        assert whole[k, n] == value


@given(shape=st.tuples(sizes, sizes), form=st.sampled_from(FORMATS), seed=seeds)
def test_rows_of_an_embedding(shape: tuple[int, int], form: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = drawn_matrix(rng, shape, form, 1)
    for count in (0, 1, 50):
        ids = rng.integers(0, shape[0], count)
        rows = rows_of(matrix, ids)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, unpack(matrix, 1)[ids])


@compiled
@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize("axis", [0, 1])
def test_compiled_unpacking_is_exact(form: Any, axis: int, threads: Any) -> None:
    for shape in [(1, 1), (1, 40), (40, 1), (17, 33), (500, 129), (7, 3000)]:
        check_unpacking(shape, form, axis, threads)


def test_bytes() -> None:
    weight = normal(np.random.default_rng(0), 100, 30)
    assert pack(weight, "float32").data is weight
    assert pack(weight, "float32").nbytes == 12000
    assert pack(weight, "bfloat16").nbytes == 6000
    assert pack(weight, "int8").nbytes == 3000 + 4 * 30
    assert pack(weight, "int8", 1).nbytes == 3000 + 4 * 100
    assert pack(weight, "int8", 0, 8).nbytes == 3000 + 4 * 13 * 30
    assert pack(weight, "int8", 1, 8).nbytes == 3000 + 4 * 100 * 4


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "broadcast"])
def test_packing_a_matrix_of_any_layout(form: Any, layout: str) -> None:
    """Also one that is packed in several pieces."""
    for shape in [(60, 50), (3, packed.BLOCK // 2 + 7)]:
        weight = normal(np.random.default_rng(0), *shape)
        for axis in (0, 1):
            expected, got = (
                pack(weight, form[0], axis, form[1]),
                pack(lay_out(weight.copy(), layout), form[0], axis, form[1]),
            )
            assert np.array_equal(got.data, expected.data)
            assert np.array_equal(unpack(got, axis), unpack(expected, axis))


# Refusals ----------------------------------------------------------------------------------------

WEIGHT = np.ones((4, 4), np.float32)


@pytest.mark.parametrize("format", ["bfloat16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(format: str, value: float) -> None:
    weight = WEIGHT.copy()
    weight[3, 2] = value
    with pytest.raises(tg.UsageError, match=r"^pack: the weights hold nan or inf, which a packed matrix can't$"):
        pack(weight, format)


@pytest.mark.parametrize(
    ("format", "group", "sentence"),
    [
        ("int5", None, "pack: there is no format 'int5': choose one of float32, bfloat16, int8, int4"),
        ("int8", 12, "pack: group must be a multiple of 8, not 12"),
        ("int8", 0, "pack: group must be at least 1, not 0"),
        ("int8", -8, "pack: group must be at least 1, not -8"),
        ("int8", 8.0, "pack: group must be a whole number, not 8.0"),
        ("int8", True, "pack: group must be a whole number, not True"),
        ("bfloat16", 8, "pack: group=8 is for int8 only, not for bfloat16: leave it out"),
        ("float32", 8, "pack: group=8 is for int8 only, not for float32: leave it out"),
    ],
)
def test_formats_and_groups_without_sense_are_refused(format: str, group: Any, sentence: str) -> None:
    with pytest.raises(tg.UsageError) as refused:
        pack(WEIGHT, format, 0, group)
    assert str(refused.value) == sentence


# Models ------------------------------------------------------------------------------------------

IDX = np.random.default_rng(0).integers(0, 13, (3, 6))


def replaced_weights(format: str, group: int | None) -> Any:
    """A model that is not packed, with the weights that a packed one stands for."""
    model = make(np.float32)
    linear = [
        layer for block in model.h for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    ]
    for layer in linear:
        layer.weight.data = unpack(pack(layer.weight.data, format, 0, group))
    model.wte.weight.data = unpack(pack(model.wte.weight.data, format, 1, group), 1)
    return model.eval()


@pytest.mark.parametrize(("format", "group"), FORMATS[1:5])
def test_a_packed_model_is_the_model_of_its_rounded_weights(format: str, group: int | None) -> None:
    plain, model = replaced_weights(format, group), make(np.float32)
    count = model.num_parameters()
    assert model.pack(format, group) is model
    assert model.packed == format
    assert model.num_parameters() == count
    assert not model.training
    for idx in (IDX, IDX[:1, :1], np.tile(IDX, (4, 1))):
        assert np.allclose(model(idx).data, plain(idx).data, rtol=0, atol=1e-5)
        assert np.allclose(model.next_logits(idx).data, plain.next_logits(idx).data, rtol=0, atol=1e-5)
    targets = np.where(IDX == 3, -100, IDX[:, ::-1])
    assert abs(model.loss(IDX, targets).item() - plain.loss(IDX, targets).item()) < 1e-5
    assert not model(IDX).requires_grad


def test_packing_in_smaller_formats_is_closer_with_more_bits() -> None:
    """Errors of the size that the formats promise: neither none nor large."""
    exact, off = make(np.float32).eval()(IDX).data, {}
    for format, group in [("bfloat16", None), ("int8", None), ("int8", 8)]:
        off[format, group] = np.abs(make(np.float32).pack(format, group)(IDX).data - exact).max() / np.abs(exact).max()
    assert 1e-4 < off["bfloat16", None] < 0.05
    assert 1e-4 < off["int8", 8] < off["int8", None] < 0.1


def refused(function: Any, sentence: str) -> None:
    with pytest.raises(tg.UsageError) as error:
        function()
    assert str(error.value) == sentence


def test_what_a_model_refuses_when_it_is_packed() -> None:
    model = make(np.float32)
    before = model.state_dict()
    refused(lambda: model.pack("float32"), "GPT.pack: format must be 'bfloat16', 'int8' or 'int4', not 'float32'")
    refused(lambda: model.pack("int8", 9), "pack: group must be a multiple of 8, not 9")
    refused(lambda: make(np.float64).pack("int8"), "GPT.pack: only a float32 model can be packed, this one is float64")
    for name in ("wte.weight", "h.1.mlp.c_proj.weight"):
        ruined = make(np.float32)
        ruined.state_dict()[name][1, 2] = np.nan
        refused(lambda ruined=ruined: ruined.pack("int8"), f"pack: {name} hold nan or inf, which a packed matrix can't")
        assert ruined.packed is None
        assert len(ruined.state_dict()) == len(before)
    assert model.packed is None
    assert all(model.state_dict()[name] is array for name, array in before.items())
    assert model.train().training


def test_what_a_packed_model_refuses(tmp_path: Any) -> None:
    model = make(np.float32).pack("int8")
    refused(lambda: model.pack("bfloat16"), "GPT.pack: this model is packed already, in int8: reload it")
    refused(model.train, "a model packed into int8 can't be trained: load it again without packing")
    refused(model.state_dict, "a model packed into int8 can't be saved: save it before it is packed")
    with pytest.raises(tg.UsageError, match="packed"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    sentence = "a model packed into int8 can't take weights: load them before it is packed"
    for strict in (True, False):
        refused(lambda strict=strict: model.load_state_dict(make(np.float32).state_dict(), strict), sentence)
    assert model.eval() is model
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_packed_layer_refuses_what_does_not_fit() -> None:
    layer = PackedLinear(tg.nn.Linear(16, 4), "int8")
    assert layer(tg.tensor(np.ones((2, 3, 16), np.float32))).shape == (2, 3, 4)
    with pytest.raises(
        ShapeError, match=r"^PackedLinear: the last axis of x must have 16 elements, x has shape \(2, 15\)$"
    ):
        layer(tg.tensor(np.ones((2, 15), np.float32)))


@pytest.mark.parametrize("format", ["bfloat16", "int8", "int4"])
def test_a_packed_embedding_takes_and_refuses_what_an_embedding_does(format: str) -> None:
    """A panel of int4 has room for more rows than the table, which are no rows of it."""
    table = tg.nn.Embedding(65, 32)
    layer = PackedEmbedding(table, format)
    for ids in (3, [1, 64], [[0, 2]], [], tg.tensor(np.array([5]))):
        assert layer(ids).shape == table(ids).shape
    for wrong in (-1, 65, 79):
        with pytest.raises(
            RangeError, match=rf"^PackedEmbedding: ids must be in 0 .. 64 \(the table has 65 rows\), not {wrong}$"
        ):
            layer(np.array([0, wrong]))
    with pytest.raises(DtypeError, match=r"^PackedEmbedding: ids must be integers, not float64"):
        layer(np.array([0.5]))
    for shape in ((2, 33), ()):
        with pytest.raises(ShapeError, match=r"^PackedEmbedding: the last axis of h must have 32 elements"):
            layer.project(tg.tensor(np.ones(shape, np.float32)))
