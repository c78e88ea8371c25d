"""Products of 8- and 4-bit weights with activations rounded to 8 bits: the definition; compiled bodies bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases.packed import check_threads, compiled, drawn_matrix, normal, terms
from tests.ops.drawing import LAYOUTS, lay_out, seeds
from tests.ops.test_packed_products import KINDS, every_kind, lengths, product, rows, unaligned
from tinygpt.backends import get
from tinygpt.kernel import use_kernels
from tinygpt.ops import _four_bits
from tinygpt.ops._integer_product import PIECES, SPAN, integer_product, rounded, span_of
from tinygpt.ops.packed import FEW_ROWS, Matrix, packed_product, packed_product_transposed, unpack

GROUPS: list[Any] = [None, 8, 16, 24, 32, 96, 1000, "int4"]  # of int8, and weights of four bits
every_group = pytest.mark.parametrize("group", GROUPS)


@pytest.fixture(params=[True, False], ids=["vnni", "pairs"])
def vnni(request: Any) -> Iterator[bool]:
    """With the instructions for products of bytes where the processor has them, and without."""
    extension = get("numpy").extension()
    if extension is None:
        yield False
        return
    had = extension.use_vnni(request.param)
    yield request.param
    extension.use_vnni(had)


def drawn(kind: str, M: int, K: int, N: int, group: Any, seed: int = 0) -> tuple[np.ndarray, Matrix]:
    """Rows of different sizes, with zeros and outliers among them. int4 has at least K terms."""
    form = ("int4", None) if group == "int4" else ("int8", group)
    rng, K = np.random.default_rng(seed), terms(K, form)
    x = normal(rng, M, K) * np.float32(2.0) ** rng.integers(-20, 20, (M, 1)).astype(np.float32)
    x[rng.random((M, K)) < 0.02] *= 50
    x[:, rng.integers(K)] = 0
    matrix = drawn_matrix(rng, (K, N) if kind == "product" else (N, K), form, KINDS[kind])
    return x, matrix._replace(activations="int8")


def expected(kind: str, x: np.ndarray, matrix: Matrix) -> np.ndarray:
    data, scale, group = integers_of(kind, matrix)
    with np.errstate(all="ignore"):
        pieces = PIECES if kind == "product" and matrix.format == "int8" else 1
        return integer_product(x, data, scale, group, pieces=pieces)


def integers_of(kind: str, matrix: Matrix) -> tuple[np.ndarray, np.ndarray, int]:
    """Whole numbers (K, N), their scales (groups, N), and how many terms share one."""
    assert matrix.scale is not None
    assert matrix.group is not None
    if matrix.outputs is not None:
        return *_four_bits.integers(matrix.data, matrix.scale, matrix.outputs), matrix.group
    transposed = kind == "transposed"
    data, scale = (matrix.data.T, matrix.scale.T) if transposed else (matrix.data, matrix.scale)
    return data, scale, matrix.group


# The definition ------------------------------------------------------------------------------------


@given(M=st.sampled_from([1, 3]), K=lengths, span=st.sampled_from([8, 16, 32]), seed=seeds)
def test_each_number_is_rounded_to_the_nearest_step_of_its_span(M: int, K: int, span: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, M, K, std=2.0 ** float(rng.integers(-100, 100)))
    q, scale = rounded(x, span)
    assert q.shape == x.shape
    assert scale.shape == (M, -(-K // span))
    assert q.dtype == scale.dtype == np.float32
    for m in range(M):
        for s in range(scale.shape[1]):
            part, numbers = x[m, s * span : (s + 1) * span].astype(np.float64), q[m, s * span : (s + 1) * span]
            step = float(scale[m, s])
            assert abs(np.abs(part).max() / step - 127) < 1e-4
            assert np.abs(numbers).max() == 127
            assert np.array_equal(numbers, np.rint(numbers))
            assert (np.abs(part - numbers * step) <= step * (0.5 + 2.0**-18)).all()


def test_rounding_by_hand() -> None:
    x = np.zeros((1, 40), np.float32)
    x[0, :5] = [127, 0.5, 1.5, -2.5, -126.6]
    x[0, 32:] = -254
    q, scale = rounded(x, 32)
    assert q[0, :5].tolist() == [127, 0, 2, -2, -127]
    assert q[0, 32:].tolist() == [-127] * 8
    assert scale.tolist() == [[1, 2]]
    zeros, step = rounded(np.zeros((2, 8), np.float32), 8)
    assert not zeros.any()
    assert (step > 0).all()


@pytest.mark.parametrize(("group", "terms", "span"), [
    (768, 768, 32), (50, 50, 32), (1000, 50, 32), (32, 768, 32), (96, 768, 32), (16, 768, 16), (48, 768, 16),
    (24, 768, 8),
])  # fmt: skip
def test_spans_lie_within_groups(group: int, terms: int, span: int) -> None:
    assert span_of(group, terms) == span


@every_group
def test_the_product_is_that_of_the_rounded_numbers(group: Any) -> None:
    """In exact arithmetic; float32 only adds up the spans."""
    rng = np.random.default_rng(0)
    x, matrix = drawn("product", 2, 300, 5, group)
    K, (data, weight_scale, length) = x.shape[1], integers_of("product", matrix)
    q, scale = rounded(x, span_of(length, K))
    got = expected("product", x, matrix)
    for m, n in ((0, 0), (1, 4), (1, rng.integers(5))):
        total, size = Fraction(0), Fraction(0)
        for k in range(K):
            step = Fraction(float(scale[m, k // span_of(length, K)])) * Fraction(float(weight_scale[k // length, n]))
            term = Fraction(int(q[m, k]) * int(data[k, n])) * step
            total, size = total + term, size + abs(term)
        assert abs(float(total) - float(got[m, n])) <= 2.0**-20 * float(size)


@every_kind
@every_group
def test_the_loss_is_that_of_8_bits(kind: str, group: Any) -> None:
    """Beside the product with float32 activations: neither none nor more than half a step for each."""
    rng = np.random.default_rng(1)
    x, form = normal(rng, 6, 768), ("int4", None) if group == "int4" else ("int8", group)
    matrix = drawn_matrix(rng, (768, 50) if kind == "product" else (50, 768), form, KINDS[kind])
    weights = unpack(matrix, KINDS[kind])
    exact = x.astype(np.float64) @ (weights if kind == "product" else weights.T).astype(np.float64)
    off = np.abs(product(kind, x, matrix._replace(activations="int8")) - exact)
    assert 1e-4 < off.max() < 0.05
    assert off.mean() < 0.01


# The compiled bodies -------------------------------------------------------------------------------


@compiled
@every_kind
@settings(max_examples=150)
@given(M=rows, K=lengths, N=lengths, group=st.sampled_from(GROUPS), layout=st.sampled_from(LAYOUTS), seed=seeds)
def test_compiled_bits(kind: str, M: int, K: int, N: int, group: Any, layout: str, seed: int) -> None:
    x, matrix = drawn(kind, M, K, N, group, seed)
    x = lay_out(x, layout)
    before = [x.copy(), matrix.data.copy(), matrix.scale.copy()]  # type: ignore[union-attr]
    assert np.array_equal(product(kind, x, matrix), expected(kind, x, matrix))
    assert all(np.array_equal(a, b) for a, b in zip((x, matrix.data, matrix.scale), before, strict=True))


@compiled
@every_kind
@every_group
def test_both_kinds_of_instructions_have_the_same_bits(kind: str, group: Any, vnni: bool) -> None:
    """Over several pieces, panels, groups and chunks of rows, with tails of each; and the largest bytes."""
    for M, K, N in [(1, 700, 330), (5, 297, 129), (33, 1031, 70), (40, 64, 1100)]:
        x, matrix = drawn(kind, M, K, N, group)
        assert np.array_equal(product(kind, x, matrix), expected(kind, x, matrix)), (M, K, N)
    for sign in (1, -1):
        x, matrix = drawn(kind, 5, 96, 40, group)
        x[...] = 1
        matrix.data[...] = sign * 127 if group != "int4" else 0x77777777 if sign > 0 else 0x88888888
        assert np.array_equal(product(kind, x, matrix), expected(kind, x, matrix))
        x[...] = -1
        if group != "int4":
            matrix.data[...] = -128  # never packed, but a byte all the same
        assert np.array_equal(product(kind, x, matrix), expected(kind, x, matrix))


@compiled
@every_kind
@settings(max_examples=30)
@given(M=rows, K=lengths, N=lengths, group=st.sampled_from(GROUPS), seed=seeds)
def test_a_row_is_the_same_among_any_others(kind: str, M: int, K: int, N: int, group: Any, seed: int) -> None:
    x, matrix = drawn(kind, M, K, N, group, seed)
    whole = product(kind, x, matrix)
    for m in range(M):
        assert np.array_equal(product(kind, x[m : m + 1], matrix)[0], whole[m]), m
    assert np.array_equal(product(kind, x[M // 3 :], matrix), whole[M // 3 :])


@pytest.mark.slow
@compiled
@every_kind
@every_group
def test_threads_change_no_bit(kind: str, group: Any, threads: Any) -> None:
    for M, K, N in [(1, 700, 3100), (5, 129, 2500), (40, 264, 1500)]:
        x, matrix = drawn(kind, M, K, N, group)
        check_threads(threads, functools.partial(product, kind, x, matrix))


@every_kind
@every_group
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_row_nan(kind: str, group: Any, value: float, vnni: bool) -> None:
    for K, N in [(40, 33), (8, 16), (1, 5), (300, 41)]:
        x, matrix = drawn(kind, 6, K, N, group)
        clean = product(kind, x, matrix)
        x[2, K // 2] = value
        x[4, -1] = value
        with np.errstate(all="ignore"):
            got = product(kind, x, matrix)
        assert np.isnan(got[[2, 4]]).all()
        assert np.array_equal(got[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


@compiled
@every_kind
@pytest.mark.parametrize("group", [32, "int4"])
def test_numbers_near_the_smallest_and_the_largest(kind: str, group: Any, vnni: bool) -> None:
    x, matrix = drawn(kind, 4, 70, 40, group)
    for size in (1e-45, 1e-40, 2.0**-126, 127 * 2.0**-126, 1e30, 3e38):
        scaled = (np.sign(x) * np.minimum(np.abs(x) / np.abs(x).max(axis=1, keepdims=True), 1) * size).astype(
            np.float32
        )
        got, wanted = product(kind, scaled, matrix), expected(kind, scaled, matrix)
        assert np.array_equal(got, wanted, equal_nan=True), size


@every_kind
@pytest.mark.parametrize("group", [32, "int4"])
@pytest.mark.parametrize("layout", [*(layout for layout in LAYOUTS if layout != "broadcast"), "unaligned"])
def test_weights_of_any_layout(kind: str, layout: str, group: Any) -> None:
    x, matrix = drawn(kind, 3, 96, 35, group)
    placed = unaligned if layout == "unaligned" else lambda array: lay_out(array.copy(), layout)
    other = matrix._replace(data=placed(matrix.data), scale=placed(matrix.scale))
    assert np.array_equal(product(kind, x, other), expected(kind, x, matrix))


@pytest.mark.parametrize("M", [0, 1, FEW_ROWS, FEW_ROWS + 1, 100])
def test_any_number_of_rows_is_rounded(M: int) -> None:
    """Unlike with float32 activations, many rows are not another product, with other bits."""
    for kind, function in (("product", packed_product), ("transposed", packed_product_transposed)):
        for group in (None, "int4"):
            x, matrix = drawn(kind, M, 50, 41, group)
            assert np.array_equal(function(x, matrix), expected(kind, x, matrix))


@every_kind
@pytest.mark.parametrize("group", [16, "int4"])
def test_float64_is_the_reference(kind: str, group: Any) -> None:
    x, matrix = drawn(kind, 3, 50, 41, group)
    x = x.astype(np.float64) * (1 + 1e-9)
    got = product(kind, x, matrix) if kind == "product" else packed_product_transposed(x, matrix)
    assert got.dtype == np.float64
    assert np.array_equal(got, expected(kind, x, matrix))


@every_kind
@pytest.mark.parametrize("group", [32, "int4"])
def test_the_reference_bodies_are_the_definition(kind: str, group: Any) -> None:
    x, matrix = drawn(kind, 3, 300, 41, group)
    with use_kernels("reference"):
        assert np.array_equal(product(kind, x, matrix), expected(kind, x, matrix))


def test_the_pieces_are_those_of_the_compiled_body() -> None:
    extension = get("numpy").extension()
    if extension is None:
        pytest.skip("extension not built")
    assert extension.integer_product_sizes() == (SPAN, PIECES)
