"""The logic of every CUDA kernel, without a GPU: the .cu files and their launchers run on the CPU (`cuda_emulator.py`).

The rows and the error rule are those of the compiled kernels. Each case runs under three schedules of its threads, and
must give the same bits under each: what depends on the order of threads is a race.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_cases import NAMES, ROWS, emulated, maybe_misaligned
from cuda_emulator import COMPILER, Device
from drawing import Example, KernelRow, some_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_rule import assert_within, float32_budget, float64_budget, results

import tinygpt.ops
import tinygpt.optim  # noqa: F401  the kernels of both are registered
from tinygpt._ext import attention_cuda, cuda

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++, c++ or clang++; CXX names another)")

every_kernel = pytest.mark.parametrize("row", ROWS, ids=NAMES)
SCHEDULES = (0, 1, 2)


def on_device(row: KernelRow, example: Example, dtype: Any, schedule: int) -> list[np.ndarray]:
    """What the CUDA body returns and writes; it must leave its other arguments alone."""
    arguments, untouched = example.make(dtype), example.make(dtype)
    with emulated(Device(schedule)):
        got = results(row, "cython", arguments)
    for i, (a, b) in enumerate(zip(arguments, untouched, strict=True)):
        if isinstance(a, np.ndarray) and i not in row.writes:
            assert np.array_equal(a, b), f"argument {i}"
    return got


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


@every_kernel
@settings(max_examples=40)
@given(data=st.data())
def test_float32(row: KernelRow, data: Any) -> None:
    example = maybe_misaligned(data.draw(row.examples), data.draw(st.booleans()))
    truth, budget = float32_budget(row, example)
    got = [on_device(row, example, np.float32, schedule) for schedule in SCHEDULES]
    assert_within(got[0], truth, budget)
    assert same(got[0], got[1])
    assert same(got[0], got[2])


@every_kernel
@settings(max_examples=15)
@given(data=st.data())
def test_float64(row: KernelRow, data: Any) -> None:
    example = maybe_misaligned(data.draw(row.examples), data.draw(st.booleans()))
    expected, budget = float64_budget(row, example)
    assert_within(on_device(row, example, np.float64, data.draw(st.integers(0, 9))), expected, budget)


def test_every_launcher_has_a_row() -> None:
    cuda.find("")
    assert sorted(set(cuda.LAUNCHERS) - set(NAMES)) == ["adamw_update_each", "sum_of_squares_each"]


@every_kernel
def test_it_is_the_cuda_body_that_runs(row: KernelRow) -> None:
    """For every example that has elements and lies in memory row by row, but for heads of attention above 128."""
    for example in some_examples(row.examples, 20):
        arguments = example.make(np.float32)
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        declined = row.name.startswith("attention") and arrays[0].shape[-1] > attention_cuda.HEADS[-1]
        if all(a.size and a.flags.c_contiguous for a in arrays) and not declined:
            device = Device()
            with emulated(device):
                results(row, "cython", arguments)
            assert device.launches > 0, example
