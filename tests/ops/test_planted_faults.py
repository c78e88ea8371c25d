"""Every result of every body, wrong by a thousandth in one tile, fails the check that the body's tests make.

A compiled body is judged at the sizes of `cases/large.py`, which cross its chunks, and must be right there; a CUDA body
at large sizes of its row; a reference by the checks of the operations that call it, which need no other body, and
beside the compiled body. With --exhaustive (`make mutants`) the first, a middle and the last tile of each result are
wrong in turn, without it one of them.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import tinygpt.ops
import tinygpt.optim  # noqa: F401  the kernels of both are registered
from tests.cuda.cases import NAMES, emulated
from tests.cuda.cases import ROWS as CUDA_ROWS
from tests.cuda.decode_cases import DECODE_ROWS, STRUCTURED, STRUCTURED_WRITES, flat_body
from tests.cuda.emulator import COMPILER, Device
from tests.ops.cases import COMPILED_ROWS, KERNEL_ROWS, ROWS
from tests.ops.checks import call, check_against_composed, random_upstream
from tests.ops.drawing import Example, KernelRow, Row, some_examples
from tests.ops.kernel_rule import (
    around_bodies,
    assert_within,
    float32_budget,
    float64_budget,
    is_array,
    results,
)
from tests.ops.planting import PLACES, Planter
from tinygpt import testing
from tinygpt.backends import get
from tinygpt.backends import numpy as numpy_backend
from tinygpt.backends.numpy import native_body
from tinygpt.kernel import REGISTRY, use_kernels
from tinygpt.testing import backward_of, check_gradients

pytestmark = pytest.mark.slow

needs_extension = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++, c++ or clang++; CXX names another)")


@pytest.fixture
def exhaustive(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--exhaustive"))


def faults(row: KernelRow, results: int, exhaustive: bool) -> list[tuple[int, str]]:
    """(number of a result, place): every one, or one place for each result, not the same for all."""
    first = zlib.crc32(row.name.encode())
    return [
        (number, place)
        for number in range(results)
        for place in (PLACES if exhaustive else (PLACES[(first + number) % len(PLACES)],))
    ]


# Fast bodies ----------------------------------------------------------------------------------------


def missed(
    row: KernelRow, examples: Iterable[Example], dtype: Any, exhaustive: bool, enough: bool = False
) -> list[tuple[int, str]]:
    """The (result, place) whose fault no example notices. The body must be right without a fault.

    enough: it is enough to come to the first examples, until every fault was noticed.
    """
    passed: dict[tuple[int, str], bool] = {}
    for example in examples:
        expected, budget = (float32_budget if dtype == np.float32 else float64_budget)(row, example)
        planter = Planter(row.writes)
        with around_bodies(planter):
            assert_within(results(row, "cython", example.make(dtype)), expected, budget)
            assert planter.kept is not None, f"the body declined {example}"
            for fault in faults(row, len(expected), exhaustive):
                planter.fault = fault
                got = results(row, "cython", example.make(dtype))
                passed[fault] = passed.get(fault, True) and not fails(assert_within, got, expected, budget)
        if enough and not any(passed.values()):
            break
    assert passed
    return [fault for fault, unnoticed in passed.items() if unnoticed]


def largest_examples(row: KernelRow | Row) -> list[Example]:
    """Some examples of a row that have no empty array, the largest first."""
    drawn = [(example, [a for a in example.make() if is_array(a)]) for example in some_examples(row.examples, 12)]
    found = [(sum(a.size for a in arrays), example) for example, arrays in drawn if all(a.size for a in arrays)]
    return [example for _, example in sorted(found, key=lambda pair: -pair[0])]


@needs_extension
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("row", COMPILED_ROWS, ids=lambda row: row.name)
def test_large_sizes_are_right_in_a_compiled_body_and_a_fault_is_noticed(
    row: KernelRow, dtype: Any, exhaustive: bool
) -> None:
    if not row.declines(dtype):
        assert missed(row, row.large, dtype, exhaustive) == []


def launches(row: KernelRow, example: Example) -> bool:
    device = Device()
    with emulated(device):
        results(row, "cython", example.make(np.float32))
    return len(device.launched) > 0


@needs_compiler
@pytest.mark.parametrize("row", CUDA_ROWS, ids=NAMES)
def test_a_fault_in_a_cuda_body_is_noticed(row: KernelRow, exhaustive: bool) -> None:
    launched = (example for example in largest_examples(row) if launches(row, example))
    with emulated(Device()):
        assert missed(row, launched, np.float32, exhaustive, enough=True) == []


# Packed weights are structures. The rows of the CUDA kernels make them of arrays, and will do for the compiled bodies.


def compiled_with_structures(kernel: str, required: bool = False) -> Callable[..., Any] | None:
    body = native_body(kernel)
    return flat_body(kernel, body) if body is not None and kernel in STRUCTURED else body


@needs_extension
@pytest.mark.parametrize("row", DECODE_ROWS, ids=lambda row: row.name)
def test_a_fault_in_a_compiled_body_of_packed_weights_is_noticed(row: KernelRow, exhaustive: bool) -> None:
    with patch.object(numpy_backend, "native_body", compiled_with_structures):
        assert missed(row, largest_examples(row), np.float32, exhaustive, enough=True) == []


# References -----------------------------------------------------------------------------------------


class Spoilt:
    """A reference of which one result is wrong in one tile. Counts the results."""

    def __init__(self, row: KernelRow, fault: tuple[int, str] | None = None) -> None:
        self.right, self.fault = REGISTRY[row.name].reference, fault
        self.writes = STRUCTURED_WRITES.get(row.name, row.writes)
        self.results = 0

    def __call__(self, *arguments: Any) -> Any:
        returned = Planter(self.writes, self.fault)(self.right, *arguments)
        several = returned if isinstance(returned, tuple) else (returned,)
        self.results = max(self.results, len(self.writes) + sum(value is not None for value in several))
        return returned


def by_operation(row: Row, example: Example) -> None:
    """The checks of an operation, which see what its kernels' references do."""
    check_gradients(call(row, example), *example.make(), directions=1)
    if row.composed is not None:
        check_against_composed(row, example)


def by_compiled_body(row: KernelRow, example: Example) -> None:
    """The check of a compiled body, which is right: it is the reference that is found out."""
    expected, budget = float32_budget(row, example)
    assert_within(results(row, "cython", example.make(np.float32)), expected, budget)


@functools.cache
def callers() -> dict[str, tuple[int, list[tuple[Row, Example]]]]:
    """For each kernel how many results its reference has in the operations' examples, and the examples that come to it,
    the largest of each operation first."""
    counts = {row.name: 0 for row in KERNEL_ROWS}
    found: dict[str, list[tuple[Row, Example]]] = {row.name: [] for row in KERNEL_ROWS}
    for row in ROWS:
        for example in largest_examples(row):
            with contextlib.ExitStack() as stack:
                spies = {kernel.name: Spoilt(kernel) for kernel in KERNEL_ROWS}
                for name, spy in spies.items():
                    stack.enter_context(patch.object(REGISTRY[name], "reference", spy))
                arrays = example.make()
                backward_of(call(row, example), arrays, random_upstream(row, example, arrays))
            for name, spy in spies.items():
                counts[name] = max(counts[name], spy.results)
                if spy.results:
                    found[name].append((row, example))
    return {name: (counts[name], found[name]) for name in found}


# Optimizers are no operations, and the product of a kernel's own is of float32, which no difference can check.
WITHOUT_OPERATION = ("adamw_update", "lion_update", "newton_schulz", "sum_of_squares", "matmul_into")
# Nor are what only a GPU's steps call, of training and of decoding; without a compiled body either, they are judged
# beside the CUDA body.
ONLY_ON_GPUS = ("clip_scale", "rounded", "sample_tokens")
OF_OPERATIONS = [row for row in KERNEL_ROWS if row.name not in WITHOUT_OPERATION + ONLY_ON_GPUS]


@pytest.mark.parametrize("row", OF_OPERATIONS, ids=lambda row: row.name)
def test_a_fault_in_a_reference_fails_the_checks_of_an_operation(row: KernelRow, exhaustive: bool) -> None:
    with use_kernels("reference"):
        assert missed_in_reference(row, by_operation, *callers()[row.name], exhaustive) == []


@needs_extension
@pytest.mark.parametrize("row", COMPILED_ROWS, ids=lambda row: row.name)
def test_a_fault_in_a_reference_is_noticed_beside_the_compiled_body(row: KernelRow, exhaustive: bool) -> None:
    if not row.declines(np.float32):
        assert missed_beside_the_compiled_body(row, exhaustive) == []


@needs_compiler
@pytest.mark.parametrize("row", [row for row in CUDA_ROWS if row.name in ONLY_ON_GPUS], ids=lambda row: row.name)
def test_a_fault_in_a_reference_is_noticed_beside_the_cuda_body(row: KernelRow, exhaustive: bool) -> None:
    with emulated(Device()):
        assert missed_beside_the_compiled_body(row, exhaustive) == []


@needs_extension
@pytest.mark.parametrize("row", DECODE_ROWS, ids=lambda row: row.name)
def test_a_fault_in_a_reference_of_packed_weights_is_noticed(row: KernelRow, exhaustive: bool) -> None:
    with patch.object(numpy_backend, "native_body", compiled_with_structures):
        assert missed_beside_the_compiled_body(row, exhaustive) == []


def missed_beside_the_compiled_body(row: KernelRow, exhaustive: bool) -> list[tuple[int, str]]:
    examples = [*largest_examples(row), *row.large]  # of the first it may decline all, by their layouts
    count = max(len(results(row, "reference", example.make())) for example in examples)
    return missed_in_reference(row, by_compiled_body, count, [(row, example) for example in examples], exhaustive)


def missed_in_reference(
    row: KernelRow, check: Callable[[Any, Example], None], count: int, examples: list[Any], exhaustive: bool
) -> list[tuple[int, str]]:
    """The (result, place) whose fault none of these (row, example) notices. All pass without a fault."""
    assert count > 0
    right: set[int] = set()

    def is_noticed(fault: tuple[int, str]) -> bool:
        for i, (judge, example) in enumerate(examples):
            if i not in right:
                check(judge, example)
                right.add(i)
            with patch.object(REGISTRY[row.name], "reference", Spoilt(row, fault)):
                if fails(check, judge, example):
                    return True
        return False

    return [fault for fault in faults(row, count, exhaustive) if not is_noticed(fault)]


def fails(check: Callable[..., None], *arguments: Any) -> bool:
    with patch.object(testing, "_worst_element", lambda *_: "not looked for"):  # which takes longer than to find out
        try:
            check(*arguments)
        except AssertionError:
            return True
    return False
