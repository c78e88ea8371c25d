"""Products of a few rows with packed matrices: the compiled bodies against the reference, and bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases.packed import ALL_FORMATS, budget, check_threads, compiled, drawn_matrix, normal, terms
from tests.ops.drawing import LAYOUTS, lay_out, seeds
from tests.ops.kernel_rule import assert_within
from tinygpt.ops.packed import (
    FEW_ROWS,
    Matrix,
    few_rows_product,
    few_rows_product_transposed,
    packed_product,
    packed_product_transposed,
    unpack,
)

lengths = st.sampled_from([1, 7, 8, 9, 15, 16, 17, 33, 127, 128, 129, 700])
rows = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 40])
KINDS = {"product": 0, "transposed": 1}  # and the axis that is summed over
every_kind = pytest.mark.parametrize("kind", KINDS)


def product(kind: str, x: np.ndarray, matrix: Matrix) -> np.ndarray:
    if kind == "product":
        return few_rows_product(x, matrix)
    out = np.full((len(x), matrix.weight_shape(1)[0]), np.nan, np.float32)
    assert few_rows_product_transposed(x, matrix, out) is out
    return out


def dense(kind: str, x: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
    """The reference on unpacked weights, in x's dtype."""
    if kind == "product":
        return [few_rows_product.reference(x, Matrix(weight))]
    return [few_rows_product_transposed.reference(x, Matrix(weight), np.empty((len(x), len(weight)), x.dtype))]


def drawn(kind: str, M: int, K: int, N: int, form: Any, seed: int = 0) -> tuple[np.ndarray, Matrix]:
    """x (M, K), a matrix; K is at least what is asked for, and what the format can have."""
    rng, K = np.random.default_rng(seed), terms(K, form)
    return normal(rng, M, K), drawn_matrix(rng, (K, N) if kind == "product" else (N, K), form, KINDS[kind])


def check_product(kind: str, x: np.ndarray, matrix: Matrix, got: np.ndarray) -> None:
    truth, allowed = budget(lambda x, weight: dense(kind, x, weight), [x, unpack(matrix, KINDS[kind])])
    assert got.dtype == np.float32
    assert_within([got], truth, allowed)


@pytest.mark.slow
@compiled
@every_kind
@settings(max_examples=120)
@given(M=rows, K=lengths, N=lengths, form=st.sampled_from(ALL_FORMATS), layout=st.sampled_from(LAYOUTS), seed=seeds)
def test_compiled_product(kind: str, M: int, K: int, N: int, form: Any, layout: str, seed: int) -> None:
    x, matrix = drawn(kind, M, K, N, form, seed)
    x = lay_out(x, layout)
    before = [None if a is None else a.copy() for a in (x, matrix.data, matrix.scale)]
    got = product(kind, x, matrix)
    check_product(kind, x, matrix, got)
    assert all(
        a is b is None or np.array_equal(a, b) for a, b in zip((x, matrix.data, matrix.scale), before, strict=True)
    )


@pytest.mark.slow
@compiled
@every_kind
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_compiled_product_of_a_large_matrix(kind: str, form: Any) -> None:
    x, matrix = drawn(kind, 3, 1200, 2500, form)
    check_product(kind, x, matrix, product(kind, x, matrix))


@compiled
@every_kind
@pytest.mark.parametrize("form", [("float32", None), ("bfloat16", None), ("int8", 8), ("int4", None)])
@pytest.mark.parametrize(("M", "K", "N"), [(32, 19, 4131), (20, 9, 6200)])
def test_a_product_whose_sums_are_more_than_the_cache_holds(kind: str, form: Any, M: int, K: int, N: int) -> None:
    """Several rows are then multiplied with a tile of columns at a time; with the same bits as a row alone."""
    x, matrix = drawn(kind, M, K, N, form)
    whole = product(kind, x, matrix)
    check_product(kind, x, matrix, whole)
    for m in (0, M // 2, M - 1):
        assert np.array_equal(product(kind, x[m : m + 1], matrix)[0], whole[m])


@compiled
@every_kind
@settings(max_examples=40)
@given(M=rows, K=lengths, N=lengths, form=st.sampled_from(ALL_FORMATS), seed=seeds)
def test_a_row_of_a_product_is_the_same_among_any_others(
    kind: str, M: int, K: int, N: int, form: Any, seed: int
) -> None:
    x, matrix = drawn(kind, M, K, N, form, seed)
    whole = product(kind, x, matrix)
    for m in range(M):
        assert np.array_equal(product(kind, x[m : m + 1], matrix)[0], whole[m]), m
    assert np.array_equal(product(kind, x[::-1].copy(), matrix), whole[::-1])
    assert np.array_equal(product(kind, x[M // 3 :], matrix), whole[M // 3 :])


@pytest.mark.slow
@compiled
@every_kind
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_threads_change_no_bit_of_a_product(kind: str, form: Any, threads: Any) -> None:
    """With several chunks of work in either product; the second is shorter than the blocks of the first."""
    for M, K, N in [(1, 700, 3100), (5, 129, 2500), (20, 33, 1500)]:
        x, matrix = drawn(kind, M, K, N, form)
        check_threads(threads, functools.partial(product, kind, x, matrix))


@every_kind
@pytest.mark.parametrize("form", ALL_FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(kind: str, form: Any, value: float) -> None:
    """And makes of it what it makes in the reference: infinities of either sign, nan where a weight is zero."""
    for K, N in [(40, 33), (8, 16), (1, 5), (300, 41)]:
        x, matrix = drawn(kind, 6, K, N, form)
        matrix.data.reshape(-1)[::3] = 0
        clean = product(kind, x, matrix)
        x[2, K // 2] = value
        x[4, -1] = value
        with np.errstate(all="ignore"):
            got, (expected,) = product(kind, x, matrix), dense(kind, x, unpack(matrix, KINDS[kind]))
        assert not np.isfinite(got[[2, 4]]).any()
        assert np.array_equal(got[[2, 4]], expected[[2, 4]], equal_nan=True)
        assert np.array_equal(got[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@every_kind
@pytest.mark.parametrize("form", ALL_FORMATS)
@pytest.mark.parametrize("layout", [*(layout for layout in LAYOUTS if layout != "broadcast"), "unaligned"])
def test_weights_of_any_layout(kind: str, form: Any, layout: str) -> None:
    x, matrix = drawn(kind, 3, 48, 35, form)
    expected = product(kind, x, matrix)
    placed = unaligned if layout == "unaligned" else lambda array: lay_out(array.copy(), layout)
    scale = None if matrix.scale is None else placed(matrix.scale)
    other = matrix._replace(data=placed(matrix.data), scale=scale)
    check_product(kind, x, matrix, product(kind, x, other))
    if layout == "read-only":
        assert np.array_equal(product(kind, x, other), expected)


@pytest.mark.parametrize("layout", ["F", "strided", "negative"])
def test_a_result_of_any_layout(layout: str) -> None:
    x, matrix = drawn("transposed", 3, 48, 35, ("int8", 16))
    out = lay_out(np.zeros((3, 35), np.float32), layout)
    few_rows_product_transposed(x, matrix, out)
    check_product("transposed", x, matrix, np.ascontiguousarray(out))


@pytest.mark.parametrize("form", ALL_FORMATS)
@pytest.mark.parametrize("M", [0, 1, FEW_ROWS, FEW_ROWS + 1, 100])
def test_products_of_any_number_of_rows(form: Any, M: int) -> None:
    for kind, function in (("product", packed_product), ("transposed", packed_product_transposed)):
        x, matrix = drawn(kind, M, 50, 41, form)
        check_product(kind, x, matrix, function(x, matrix))


@every_kind
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_products_in_float64_are_the_reference(kind: str, form: Any) -> None:
    x, matrix = drawn(kind, 3, 50, 41, form)
    x = x.astype(np.float64) + 1e-9
    weight = unpack(matrix, KINDS[kind]).astype(np.float64)
    function = packed_product if kind == "product" else packed_product_transposed
    got = function(x, matrix)
    assert got.dtype == np.float64
    assert np.allclose(got, x @ (weight if kind == "product" else weight.T), rtol=1e-12, atol=1e-14)


def test_sizes_that_do_not_fit_never_reach_the_compiled_loops() -> None:
    """They would read and write beyond the arrays; NumPy says what is wrong."""
    for form in (("int8", 16), ("int4", None)):
        x, matrix = drawn("transposed", 3, 48, 35, form)
        for shape in [(2, 35), (3, 34), (35, 3)]:
            with pytest.raises(ValueError, match="matmul"):
                few_rows_product_transposed(x, matrix, np.zeros(shape, np.float32))
    for kind in KINDS:
        for form, K in ((("bfloat16", None), 48), (("int4", None), 64)):
            x, matrix = drawn(kind, 3, K, 35, form)
            with pytest.raises(ValueError, match="matmul"):
                product(kind, x[:, : K - 1].copy(), matrix)
