"""On a GPU: every CUDA kernel as CuPy compiles and runs it, by the rows and the rule of the emulated ones.

`pytest -m gpu` where there is one; elsewhere each test is skipped, with the sentence of what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda.cases import NAMES, ROWS, body_of
from tests.ops.drawing import Example, KernelRow, some_examples
from tests.ops.kernel_rule import assert_within, float16_budget, float32_budget, float64_budget, is_array
from tinygpt import backends
from tinygpt._ext import cuda
from tinygpt.backends.cupy_kernels import device
from tinygpt.errors import UsageError

pytestmark = pytest.mark.gpu

FLOAT32_ALONE = ("few_rows_product", "few_rows_product_transposed", "unpack_into")  # what packed weights are met with

every_kernel = pytest.mark.parametrize("row", ROWS, ids=NAMES)


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    try:
        with tg.use_backend("cupy"), tg.use_backend("numpy"):
            yield backends.get("cupy").xp
    except UsageError as error:
        pytest.skip(str(error))


def on_gpu(row: KernelRow, arguments: list[Any], cupy: Any, shift: bool = False) -> list[np.ndarray] | None:
    """What the CUDA body returns and writes, twice with the same bits; None where it declines.

    shift: every array lies one element behind a multiple of 16 bytes, so that no access to packs is possible.
    """
    body = body_of(device(cupy), row.name)
    assert body is not None
    found: list[list[np.ndarray]] = []
    for _ in range(2):
        moved = [moved_to(cupy, a, shift) if is_array(a) else a for a in arguments]
        returned = body(*moved)
        if returned is NotImplemented:
            return None
        returned = returned if isinstance(returned, tuple) else (returned,)
        made = [*returned, *(moved[i] for i in row.writes)]
        found.append([to_host(value).astype(np.float64) for value in made if value is not None])
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)
    return found[0]


def to_host(value: Any) -> np.ndarray:
    return backends.move(value, "numpy") if backends.is_array(value) else np.asarray(value)


def moved_to(cupy: Any, array: np.ndarray, shift: bool) -> Any:
    copy = cupy.empty(array.size + shift, array.dtype)[int(shift) :].reshape(array.shape)
    copy[...] = cupy.asarray(array)
    return copy


def with_elements(row: KernelRow, count: int) -> list[Example]:
    return [e for e in some_examples(row.examples, count) if all(a.size for a in e.make() if is_array(a))]


@every_kernel
@pytest.mark.parametrize(("dtype", "budget_of"), [(np.float32, float32_budget), (np.float64, float64_budget)])
def test_kernels(row: KernelRow, dtype: Any, budget_of: Callable[..., Any], cupy: Any) -> None:
    ran = 0
    for i, example in enumerate(with_elements(row, 40)):
        truth, budget = budget_of(row, example)
        got = on_gpu(row, example.make(dtype), cupy, shift=i % 2 == 1)
        if got is not None:
            ran += 1
            assert_within(got, truth, budget)
    assert (ran > 0) == (dtype != np.float64 or row.name not in FLOAT32_ALONE)


@every_kernel
def test_kernels_in_float16(row: KernelRow, cupy: Any) -> None:
    for example in with_elements(row, 20):
        with np.errstate(over="ignore"):
            arguments = [np.array(a) if is_array(a) else a for a in example.make(np.float16)]
        arrays = [a for a in arguments if is_array(a)]
        if not all(np.isfinite(a).all() for a in arrays) or arrays[0].ndim == 0:
            continue
        truth, budget = float16_budget(row, [a.copy() if is_array(a) else a for a in arguments])
        got = on_gpu(row, arguments, cupy)
        if got is not None and all(np.abs(t).max() < 6e4 for t in truth):
            assert_within(got, truth, budget)


@pytest.mark.parametrize("file", cuda.FILES)
def test_bfloat16_compiles_and_loads(file: str, cupy: Any) -> None:
    for expression in cuda.expressions(file, "bfloat16"):
        assert device(cupy).compiled(file, expression) is not None


def test_an_id_outside_of_the_table_reads_nothing(cupy: Any) -> None:
    body = body_of(device(cupy), "embedding_forward")
    assert body is not None
    y = backends.move(body(cupy.ones((5, 8), np.float32), cupy.asarray(np.array([0, 5, -1, 2**40]))), "numpy")
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1:]).all()
