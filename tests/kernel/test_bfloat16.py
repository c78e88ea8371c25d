"""Compiled bodies on arrays in bfloat16: the product by its rule, bit for bit, and the others beside their reference.

A body reads bfloat16, computes in float32 and rounds each result once, so it may be as far from the reference in
float64 as a body of float32 (`tests/ops/kernel_rule.py`), and by that one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tinygpt.ops
import tinygpt.optim  # noqa: F401  the kernels of both are registered
from tests.kernel.at_level import NAMED, output_at
from tests.ops.cases import COMPILED_ROWS
from tests.ops.drawing import Example, KernelRow, some_examples
from tests.ops.kernel_rule import EPS32, Reached, all_results, assert_within, float32_budget, is_array, largest
from tinygpt._ext import cuda
from tinygpt.backends import get
from tinygpt.backends.precision import in_float32
from tinygpt.kernel import REGISTRY, use_kernels
from tinygpt.ops._matmul import add_matmul, matmul_arrays

EXTENSION: Any = get("numpy").extension()
pytestmark = pytest.mark.skipif(EXTENSION is None, reason="extension not built")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EPS = 2.0**-8  # of a rounding to 8 significant bits

# Products -----------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["instruction", "portable"])
def products(request: pytest.FixtureRequest) -> Iterator[bool]:
    """By the processor's instruction, and by the body for processors without it."""
    if request.param and not EXTENSION.has_bfloat16_products():
        pytest.skip("this processor or level has no bfloat16 products")
    EXTENSION.use_bfloat16_products(request.param)
    yield request.param
    EXTENSION.use_bfloat16_products(True)


def by_the_rule(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (M, K) @ b (K, N), summed in float32: of each two neighbours along k the second product first."""
    M, K = a.shape
    wide = np.zeros((M, K + K % 2), np.float32), np.zeros((K + K % 2, b.shape[1]), np.float32)
    wide[0][:, :K], wide[1][:K] = a, b
    total = np.zeros((M, b.shape[1]), np.float32)
    for k in range(0, K, 2):
        for term in (k + 1, k):
            total = total + wide[0][:, term, None] * wide[1][term]  # each product is exact
    return total


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rows": lambda x: x,
    "columns": np.asfortranarray,
    "rows of a wider matrix": lambda x: np.hstack([x, x])[:, : x.shape[1]],
    "rows that begin within a word": lambda x: np.hstack([x[:, :1], x])[:, 1:],
    "columns of a longer matrix": lambda x: np.asfortranarray(np.vstack([x, x]))[: x.shape[0]],
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
}
# One number, odd sums, rows and columns around a strip of 14 (6) and a panel of 32 (16), several of them.
SHAPES = [
    (1, 1, 1),
    (1, 2, 1),
    (2, 1, 3),
    (1, 7, 5),
    (5, 8, 1),
    (14, 300, 32),
    (15, 299, 33),
    (33, 64, 70),
    (3, 30, 99),
]


def factors(M: int, K: int, N: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([M, K, N])
    return rng.standard_normal((M, K)).astype(BFLOAT16), rng.standard_normal((K, N)).astype(BFLOAT16)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_have_the_bits_of_the_rule(shape: tuple[int, int, int]) -> None:
    a, b = factors(*shape)
    expected = by_the_rule(a, b)
    before = np.random.default_rng(0).standard_normal(expected.shape).astype(np.float32)
    for left in LAYOUTS.values():
        for right in LAYOUTS.values():
            given = left(a), right(b)
            assert np.array_equal(matmul_arrays(*given, float32_result=True), expected)
            rounded = matmul_arrays(*given)
            assert rounded.dtype == BFLOAT16
            assert np.array_equal(rounded, expected.astype(BFLOAT16))
            out = before.copy()
            add_matmul(*given, out)
            assert np.array_equal(out, before + expected)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shape", [(500, 1500, 300), (100, 1301, 1300), (40, 2700, 50)], ids=str)
def test_long_sums_are_float32s(shape: tuple[int, int, int]) -> None:
    """Sums in several pieces, B packed for all threads and in parts: as far off as a sum in float32 may be, and rounded
    to bfloat16 once, at the end."""
    a, b = factors(*shape)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    terms = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    plain = a.astype(np.float32) @ b.astype(np.float32)
    for left in ("rows", "columns"):
        for right in ("rows", "columns"):
            given = LAYOUTS[left](a), LAYOUTS[right](b)
            found = matmul_arrays(*given, float32_result=True)
            assert largest(found - exact) <= 2 * largest(plain - exact) + EPS32 * largest(exact)
            assert (np.abs(found - exact) <= shape[1] * EPS32 / 2 * terms).all()
            assert np.array_equal(matmul_arrays(*given), found.astype(BFLOAT16))


def test_both_bodies_round_alike() -> None:
    """Ties to the even neighbour, what is too large to infinity, NaN to NaN; a sum of opposites is zero."""
    largest_number = float(ml_dtypes.finfo(BFLOAT16).max)
    pairs = [
        (1, 2.0**-8),
        (1, 3 * 2.0**-8),
        (-1, -(2.0**-8)),
        (largest_number, 1e36),
        (np.inf, 1),
        (np.nan, 1),
        (2, -2),
    ]
    parts = np.array(pairs, np.float32).astype(BFLOAT16)
    expected = np.array([1, 1 + 2.0**-6, -1, np.inf, np.inf, np.nan, 0], np.float32)
    for wanted in (True, False):
        EXTENSION.use_bfloat16_products(wanted)
        found = matmul_arrays(parts, np.ones((2, 1), BFLOAT16))[:, 0]
        assert np.array_equal(found.astype(np.float32), expected, equal_nan=True)
    EXTENSION.use_bfloat16_products(True)


@pytest.mark.usefixtures("products")
def test_products_write_nothing_beside_their_result() -> None:
    a, b = factors(20, 9, 30)
    for dtype in (np.float32, BFLOAT16):
        wide = np.full((20, 40), 7, dtype)
        matmul_arrays(a, b, out=wide[:, 5:35])
        assert (np.delete(wide, np.s_[5:35], axis=1) == 7).all()
        assert np.array_equal(wide[:, 5:35], by_the_rule(a, b).astype(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("level", NAMED)
def test_each_level_has_the_bits_of_the_rule(level: str) -> None:
    script = (
        "import numpy as np\nfrom tests.kernel.test_bfloat16 import by_the_rule, factors, matmul_arrays\n"
        "for shape in [(1, 7, 5), (15, 299, 33), (70, 64, 130)]:\n"
        "    found = matmul_arrays(*factors(*shape), float32_result=True)\n"
        "    assert np.array_equal(found, by_the_rule(*factors(*shape))), shape\n"
        "print('same')\n"
    )
    assert output_at(level, script) == "same\n"


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(500, 1500, 300), (100, 1300, 1300), (70, 2700, 50)], ids=str)
def test_threads_change_no_bit_of_a_product(shape: tuple[int, int, int], threads: Any) -> None:
    a, b = factors(*shape)
    results: list[list[np.ndarray]] = []
    for count in (1, 2, 3, 8):
        threads(count)
        given = [
            (left(a), right(b)) for left in (np.array, np.asfortranarray) for right in (np.array, np.asfortranarray)
        ]
        results.append([matmul_arrays(*pair, float32_result=wide) for pair in given for wide in (True, False)])
    for others in results[1:]:
        assert all(np.array_equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_a_product_that_does_not_fit_is_refused() -> None:
    a, b = factors(40, 50, 60)
    for given in ((a, b[:-1], np.zeros((40, 60), BFLOAT16)), (a, b, np.zeros((39, 60), BFLOAT16))):
        with pytest.raises(ValueError, match=r"mismatch|broadcast"):
            REGISTRY["matmul_into"](*given, False)


# The other kernels --------------------------------------------------------------------------------

TAKEN = set(getattr(EXTENSION, "TAKES_BFLOAT16", ())) - {"matmul_into", "adamw_update"}
NARROW_ROWS = [row for row in COMPILED_ROWS if row.name in TAKEN]
each_narrow_kernel = pytest.mark.parametrize("row", NARROW_ROWS, ids=lambda row: row.name)


def names_of(row: KernelRow) -> tuple[str, ...]:
    return REGISTRY[row.name].names


def with_narrow_values(row: KernelRow, arguments: list[Any]) -> list[Any]:
    """The same arguments; those that are in bfloat16 in training have numbers of that type."""
    return [
        a.astype(BFLOAT16).astype(a.dtype) if is_narrow(name, a) else a
        for name, a in zip(names_of(row), arguments, strict=False)
    ]


def is_narrow(name: str, value: Any) -> bool:
    return is_array(value) and value.dtype.kind == "f" and name not in cuda.STATISTICS


def narrow(row: KernelRow, arguments: list[Any]) -> list[Any]:
    """The arguments of `with_narrow_values`, in bfloat16."""
    pairs = zip(names_of(row), arguments, strict=False)
    return [a.astype(BFLOAT16) if is_narrow(name, a) else a for name, a in pairs]


class Narrowed(Example):
    """An example whose numbers are those that its arrays have in bfloat16."""

    row: KernelRow

    def make(self, dtype: Any = np.float64) -> list[Any]:
        arguments = with_narrow_values(self.row, super().make(np.float32))
        if self.row.name == "attention_backward":  # y and lse of these q, k, v, not of those before they were rounded
            _, q, k, v, _, _, *options = arguments[:11]
            y, lse = REGISTRY["attention_forward"].reference(*[a.astype(np.float64) for a in (q, k, v)], *options)
            arguments[4], arguments[5] = y.astype(BFLOAT16).astype(np.float32), lse.astype(np.float32)
        return [a.astype(dtype) if is_array(a) and a.dtype.kind == "f" else a for a in arguments]


def narrowed(row: KernelRow, example: Example) -> Narrowed:
    made = Narrowed(example.arrays, example.options)
    object.__setattr__(made, "row", row)
    return made


def compare(row: KernelRow, example: Example, reached: Reached) -> None:
    example = narrowed(row, example)
    truth, budget = float32_budget(row, example)
    arguments = narrow(row, example.make(np.float32))
    with np.errstate(all="ignore"):
        got = reached.results(row, arguments)
    rounded = [2 * allowed + EPS * largest(true) for true, allowed in zip(truth, budget, strict=True)]
    assert_within(got, truth, rounded)


@each_narrow_kernel
def test_a_body_on_bfloat16_is_one_rounding_from_the_reference(row: KernelRow) -> None:
    reached = Reached()
    for example in [*some_examples(row.examples, 12), *row.large]:
        if all(a.size for a in example.make(np.float32) if is_array(a)):
            compare(row, example, reached)
    reached.assert_half()


@each_narrow_kernel
def test_statistics_and_sums_are_in_float32_and_the_rest_in_bfloat16(row: KernelRow) -> None:
    """So that a fallback in the midst of a step goes unnoticed."""
    example = narrowed(row, row.large[0])
    found = []
    for kind in ("cython", "reference"):
        with use_kernels(kind), np.errstate(all="ignore"):
            returned = REGISTRY[row.name](*narrow(row, example.make(np.float32)))
        found.append([getattr(v, "dtype", None) for v in (returned if isinstance(returned, tuple) else (returned,))])
    assert found[0] == found[1]


@each_narrow_kernel
def test_threads_change_nothing_in_bfloat16(row: KernelRow, threads: Any) -> None:
    for example in row.large:
        results = []
        for count in (1, 2, 3, 8):
            threads(1)
            arguments = narrow(row, narrowed(row, example).make(np.float32))
            threads(count)
            results.append(all_results(row, "cython", arguments))
        for others in results[1:]:
            for one, other in zip(results[0], others, strict=True):
                assert (one is None and other is None) or np.array_equal(one, other, equal_nan=True)


def test_what_a_body_does_not_take_is_computed_in_float32() -> None:
    """An operation without such a body, float16, and arrays of two types that do not belong together."""
    rows = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for dtype in (BFLOAT16, np.dtype(np.float16)):
        y = REGISTRY["softmax_forward"](rows.astype(dtype))
        assert y.dtype == dtype
        expected = REGISTRY["softmax_forward"](rows.astype(dtype).astype(np.float32))
        assert np.array_equal(y, expected.astype(dtype))
    mixed = REGISTRY["gelu_backward"](rows, rows.astype(BFLOAT16))
    assert np.array_equal(
        mixed, REGISTRY["gelu_backward"](rows, rows.astype(BFLOAT16).astype(np.float32)).astype(BFLOAT16)
    )


def test_a_result_in_memory_that_was_offered_is_rounded_too() -> None:
    """Of a body for float32 that writes into the memory of an argument if it may: there it is that of a copy."""

    def product(dy: np.ndarray, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        return np.multiply(dy, x, out=out)

    dy, x = (a.astype(BFLOAT16) for a in np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32))
    expected = (dy.astype(np.float32) * x.astype(np.float32)).astype(BFLOAT16)
    assert np.array_equal(in_float32(product, (dy, x, dy), False, ()), expected)


def test_adamw_writes_the_copy_of_the_new_weights() -> None:
    rng = np.random.default_rng(0)
    param, grad, m, v = (rng.standard_normal(20_001).astype(np.float32) for _ in range(4))
    settings = (1e-2, 0.9, 0.99, 1e-8, 0.1, 3, 0.5)
    alone = param.copy()
    REGISTRY["adamw_update"](alone, grad, m.copy(), v**2, *settings)
    rounded = np.full(param.shape, np.nan, BFLOAT16)
    REGISTRY["adamw_update"].each([(param, grad, m, v**2, *settings, rounded)])
    assert np.array_equal(param, alone)
    assert np.array_equal(rounded, alone.astype(BFLOAT16))


@pytest.mark.parametrize("size", [1, 15, 70_001])
def test_rounding_is_to_nearest(size: int) -> None:
    """By AdamW without a learning rate, which changes nothing."""
    drawn = np.random.default_rng(size).integers(0, 2**32, size, dtype=np.uint32)
    special = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x3F808000, 0x3F818000]  # infinities, NaN, ties
    x = np.concatenate([drawn, np.array(special, np.uint32)]).view(np.float32)
    zeros, found = np.zeros_like(x), np.zeros(x.shape, BFLOAT16)
    with np.errstate(all="ignore"):
        expected = x.astype(BFLOAT16)
        given = (x, zeros, zeros.copy(), zeros.copy(), 0.0, 0.9, 0.99, 1e-8, 0.0, 1, 1.0, found)
        REGISTRY["adamw_update"].each([given])
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))
