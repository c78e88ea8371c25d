"""Every compiled body against its reference, by the rule in `tests/ops/kernel_rule.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygpt.ops
import tinygpt.optim  # noqa: F401  the kernels of both are registered
from tests.ops.cases import COMPILED_ROWS, KERNEL_ROWS
from tests.ops.drawing import Example, KernelRow, some_examples
from tests.ops.kernel_rule import EPS32, Reached, assert_within, float32_budget, float64_budget, largest, results
from tinygpt.backends import get
from tinygpt.backends import numpy as numpy_backend
from tinygpt.kernel import REGISTRY, use_kernels

needs_extension = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")
every_kernel = pytest.mark.parametrize("row", KERNEL_ROWS, ids=lambda row: row.name)
every_compiled_kernel = pytest.mark.parametrize("row", COMPILED_ROWS, ids=lambda row: row.name)


def compared(row: KernelRow, dtype: Any, budget_of: Any, count: int) -> None:
    """The compiled body and the reference on examples that hypothesis draws; half of them must come to the body."""
    reached = Reached()

    @settings(max_examples=count)
    @given(row.examples)
    def compare(example: Example) -> None:
        expected, budget = budget_of(row, example)
        assert_within(reached.results(row, example.make(dtype)), expected, budget)

    compare()
    if not row.declines(dtype):
        reached.assert_half()


@needs_extension
@every_compiled_kernel
def test_compiled_body_in_float32(row: KernelRow, fewer: Any) -> None:
    compared(row, np.float32, float32_budget, count=fewer(80))


@pytest.mark.slow
@needs_extension
@every_compiled_kernel
def test_compiled_body_in_float64(row: KernelRow, fewer: Any) -> None:
    compared(row, np.float64, float64_budget, count=fewer(40))


@needs_extension
def test_the_compiled_product_takes_float32_with_avx2_or_avx512() -> None:
    """Elsewhere it leaves all to the BLAS; a row that says so by asking the body must not say it here."""
    row = next(row for row in COMPILED_ROWS if row.name == "matmul_into")
    assert row.declines(np.float64)
    if any(f"compiled extension for {level}" in numpy_backend.describe() for level in ("avx2", "avx512")):
        assert not row.declines(np.float32)


@pytest.mark.parametrize(
    "shapes",
    [((40, 50), (50, 60), (40, 59)), ((40, 50), (50, 60), (39, 60)), ((40, 50), (49, 60), (40, 60)),
     ((2, 40, 50), (2, 50, 60), (1, 40, 60)), ((2, 40, 50), (1, 50, 60), (2, 41, 60))],
    ids=str,
)  # fmt: skip
def test_a_product_that_does_not_fit_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    """Before it writes beyond the arrays."""
    a, b, out = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=r"mismatch|broadcast"):
        REGISTRY["matmul_into"](a, b, out, False)


@needs_extension
def test_a_product_has_the_same_bits_wherever_its_rows_lie() -> None:
    """Side by side, apart, a multiple of 4 KB apart (copied with AVX-512) or as columns (packed once, for several parts
    of B): every element is summed in the same order."""
    draws = np.random.default_rng(0)
    a, b = (draws.standard_normal(shape, dtype=np.float32) for shape in ((701, 650), (650, 500)))
    out = np.empty((701, 500), np.float32)
    if not numpy_backend.native_body("product_is_ours")():
        pytest.skip("products are the BLAS library's here")
    REGISTRY["matmul_into"](a, b, out, False)
    assert np.abs(out - a.astype(np.float64) @ b).max() < 1e-3
    for stride in (650, 700, 1024, 3072):
        wide = np.zeros((701, stride), np.float32)
        wide[:, :650] = a
        assert_same_bits(f"rows {stride} apart", REGISTRY["matmul_into"](wide[:, :650], b, out.copy(), False), out)
    columns = np.asfortranarray(a)
    assert_same_bits("columns", REGISTRY["matmul_into"](columns, b, out.copy(), False), out)


@needs_extension
@every_compiled_kernel
@given(data=st.data())
def test_compiled_body_leaves_its_inputs_alone(row: KernelRow, data: Any) -> None:
    """Inputs that are not declared as written keep their values, and two calls agree to the last bit."""
    example = data.draw(row.examples)
    arguments, untouched = example.make(np.float32), example.make(np.float32)
    first = Reached().results(row, arguments)  # in memory full of NaN, and below in memory as it comes
    for i, (a, b) in enumerate(zip(arguments, untouched, strict=True)):
        if isinstance(a, np.ndarray) and i not in row.writes:
            assert_same_bits(f"{row.name}: argument {i}", a, b)
    for i, (a, b) in enumerate(zip(first, results(row, "cython", example.make(np.float32)), strict=True)):
        assert_same_bits(f"{row.name}: result {i} of two calls", a, b)


def assert_same_bits(what: str, a: np.ndarray, b: np.ndarray) -> None:
    """This has failed once and never again: a failure says where, by how much, and at what addresses."""
    if not np.array_equal(a, b):
        places = np.argwhere(np.asarray(a != b))
        values = [(tuple(map(int, p)), float(a[tuple(p)]), float(b[tuple(p)])) for p in places[:5]]
        addresses = f"at {a.ctypes.data:#x} and {b.ctypes.data:#x}, {get('numpy').describe()}"
        pytest.fail(f"{what}: {len(places)} of {a.size} elements differ, {values}; {addresses}")


@pytest.mark.slow
@every_kernel
def test_the_rule_is_strict(row: KernelRow) -> None:
    """A body that is off by 1e-4 of its largest element is refused, in each of its results."""
    seen: set[int] = set()
    caught: set[int] = set()
    for example in some_examples(row.examples, 10):
        truth, budget = float32_budget(row, example)
        for i in range(len(truth)):
            seen.add(i)
            sloppy = [t + 1e-4 * largest(t) * (i == j) for j, t in enumerate(truth)]
            try:
                assert_within(sloppy, truth, budget)
            except AssertionError:
                caught.add(i)
    assert caught == seen


@pytest.mark.slow
@every_kernel
def test_reference_keeps_the_dtype(row: KernelRow) -> None:
    for example in some_examples(row.examples, 10):
        returned = REGISTRY[row.name].reference(*example.make(np.float32))
        for value in returned if isinstance(returned, tuple) else (returned,):
            if isinstance(value, np.ndarray):
                assert value.dtype != np.float64


def test_nothing_of_size_zero_reaches_a_compiled_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes it: a compiled body may count on at least one element."""
    kernel = REGISTRY["column_sum"]

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("called")

    monkeypatch.setattr(kernel, "fast_body", lambda arguments: refuse)
    with use_kernels("auto"):
        assert np.array_equal(kernel(np.zeros((0, 3))), np.zeros(3))
        assert kernel(np.zeros((3, 0))).shape == (0,)
        with pytest.raises(AssertionError, match="called"):
            kernel(np.zeros((1, 1)))


def both(name: str, *arguments: Any) -> tuple[Any, Any]:
    """What the reference and the compiled body return."""
    bodies = REGISTRY[name].variants()
    with np.errstate(all="ignore"):
        return bodies["reference"](*arguments), bodies["cython"](*arguments)


@needs_extension
@pytest.mark.parametrize("name", ["cross_entropy_forward", "cross_entropy_inplace"])
def test_logits_may_begin_with_thousands_of_minus_infinity(name: str) -> None:
    """The one-pass sum takes a row in pieces, and the first of them may hold nothing to sum."""
    logits = np.random.default_rng(0).standard_normal((2, 5000))
    logits[0, :2100], logits[1, 3000:] = -np.inf, -np.inf
    targets = np.array([4000, 7])
    scale = (1.0,) if name.endswith("inplace") else ()
    for kind in ("reference", "cython"):
        result = REGISTRY[name].variants()[kind](logits.copy(), targets, -100, *scale)
        losses = result[0] if isinstance(result, tuple) else result
        exact = [np.log(np.exp(row).sum()) - row[target] for row, target in zip(logits, targets, strict=True)]
        assert np.allclose(losses, exact, rtol=1e-12, atol=0), kind


@needs_extension
def test_a_row_far_from_zero_is_normalised_with_its_exact_mean() -> None:
    """Deviations of a millionth of the mean: a mean rounded to float32 would be off by a few hundredths of them."""
    x = (1000 + 1e-3 * np.random.default_rng(0).standard_normal((4, 64))).astype(np.float32)
    weight = np.ones(64, np.float32)
    truth = REGISTRY["layer_norm_forward"].reference(x.astype(np.float64), weight.astype(np.float64), None, 1e-12)[0]
    reference, compiled = both("layer_norm_forward", x, weight, None, 1e-12)
    assert abs(compiled[0] - truth).max() <= 2 * abs(reference[0] - truth).max() + EPS32


@needs_extension
@pytest.mark.parametrize("size", [1e20, 3e37, 1e-20, 1e-30])
def test_rows_are_normalised_whose_squares_no_float_holds(size: float) -> None:
    x = (size * np.random.default_rng(0).standard_normal((4, 256))).astype(np.float32)
    reference, compiled = both("layer_norm_forward", x, np.ones(256, np.float32), None, 1e-80)
    assert np.allclose(compiled[0], reference[0], rtol=1e-5, atol=1e-6)
    assert abs(compiled[0]).max() > 2


@needs_extension
def test_an_id_that_occurs_65536_times_keeps_its_digits() -> None:
    dy = np.random.default_rng(0).uniform(size=(65536, 3)).astype(np.float32)
    ids = np.full(65536, 2)
    ids[::1000] = 0
    reference, compiled = np.zeros((2, 4, 3), np.float32)
    bodies = REGISTRY["embedding_backward"].variants()
    bodies["reference"](dy, ids, reference)
    bodies["cython"](dy, ids, compiled)
    assert np.allclose(compiled, reference, rtol=EPS32, atol=0)
    assert reference[2].min() > 30000


@needs_extension
def test_the_erf_form_of_gelu_keeps_its_digits() -> None:
    """At every magnitude, and relatively where it falls to nothing: a result near 0 does not excuse a rough tail.

    What the levels were measured to be off by, the worst of them: 1.3e-7, 1.5e-6, 1.8e-5 and 2.6e-7.
    """
    x = np.concatenate([np.logspace(-38, 38, 4001), np.linspace(0.0, 14.0, 8001)]).astype(np.float32)
    x = np.concatenate([x, -x])
    exact = np.array([0.5 * math.erfc(-v * math.sqrt(0.5)) for v in x.astype(float)])
    wide = x.astype(float)
    slope = exact + wide * np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    y = REGISTRY["gelu_erf_forward"].variants()["cython"](x)
    off = np.abs(y - wide * exact)
    assert np.all(off <= 1.5e-7 * np.maximum(1.0, np.abs(x)))
    for least, allowed in ((-4.0, 1.5e-6), (-13.0, 2e-5)):
        tail = (x < 0) & (x > least)
        assert np.all(off[tail] <= allowed * np.abs(wide * exact)[tail] + 1e-45), least
    dx = REGISTRY["gelu_erf_backward"].variants()["cython"](np.ones_like(x), x)
    assert np.abs(dx - slope).max() <= 2.7e-7


@needs_extension
def test_the_erf_form_of_gelu_of_what_is_not_finite() -> None:
    x = np.array([np.nan, np.inf], np.float32)
    y = REGISTRY["gelu_erf_forward"].variants()["cython"](x)
    dx = REGISTRY["gelu_erf_backward"].variants()["cython"](np.ones_like(x), x)
    assert np.array_equal(y, [np.nan, np.inf], equal_nan=True)
    assert np.array_equal(dx, [np.nan, 1], equal_nan=True)
