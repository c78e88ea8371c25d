"""The logic of every CUDA kernel, without a GPU: the .cu files and their launchers run on the CPU (`emulator.py`).

The rows and the error rule are those of the compiled kernels. Each case runs under three schedules of its threads, and
must give the same bits under each: what depends on the order of threads is a race.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinygpt.ops
import tinygpt.optim  # noqa: F401  the kernels of both are registered
from tests.cuda.cases import ARGUMENTS, NAMES, ROWS, body_of, emulated, maybe_misaligned
from tests.cuda.checks import CHECKS
from tests.cuda.decode_cases import STRUCTURED
from tests.cuda.emulator import COMPILER, Device, Program
from tests.ops.drawing import Example, KernelRow, seeds, some_examples
from tests.ops.kernel_rule import (
    all_results,
    assert_within,
    float16_budget,
    float32_budget,
    float64_budget,
    is_array,
    largest,
    results,
)
from tinygpt._ext import cuda
from tinygpt._ext.cuda.attention.attention import HEADS
from tinygpt.kernel import REGISTRY, Kernel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++, c++ or clang++; CXX names another)"),
]

every_kernel = pytest.mark.parametrize("row", ROWS, ids=NAMES)
SCHEDULES = (0, 1, 2)
not_finite = st.sampled_from([np.nan, np.inf, -np.inf])


def on_device(row: KernelRow, example: Example, dtype: Any, device: Device) -> list[np.ndarray]:
    """What the CUDA body returns and writes; it must leave its other arguments alone."""
    arguments, untouched = example.make(dtype), example.make(dtype)
    with emulated(device):
        got = results(row, "cython", arguments)
    for i, (a, b) in enumerate(zip(arguments, untouched, strict=True)):
        if isinstance(a, np.ndarray) and i not in row.writes:
            assert np.array_equal(a, b), f"argument {i}"
    return got


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


def compared(row: KernelRow, dtype: Any, budget_of: Any, schedules: Sequence[int], count: int) -> None:
    """The CUDA body and the reference on examples that hypothesis draws; half of them must come to a kernel: where none
    is launched, the reference is compared with itself."""
    launched: list[bool] = []

    @settings(max_examples=count)
    @given(row.examples, st.booleans())
    def compare(drawn: Example, shift: bool) -> None:
        example = maybe_misaligned(drawn, shift)
        expected, budget = budget_of(row, example)
        devices = [Device(schedule) for schedule in schedules]
        got = [on_device(row, example, dtype, device) for device in devices]
        launched.append(all(device.launched for device in devices))
        assert_within(got[0], expected, budget)
        assert all(same(got[0], others) for others in got[1:])

    compare()
    if row.declines(dtype):
        return
    assert 2 * sum(launched) >= len(launched) > 0, f"{sum(launched)} of {len(launched)} examples came to a kernel"


@every_kernel
def test_float32(row: KernelRow) -> None:
    compared(row, np.float32, float32_budget, SCHEDULES, count=25)


@every_kernel
def test_float64(row: KernelRow) -> None:
    compared(row, np.float64, float64_budget, SCHEDULES[1:2], count=8)


@every_kernel
@settings(max_examples=6)
@given(data=st.data())
def test_float16(row: KernelRow, data: Any) -> None:
    """Arrays of 16 bits, arithmetic in float32. (What is particular to bfloat16 is its conversion: see below.)"""
    with np.errstate(over="ignore"):
        drawn = data.draw(row.examples).make(np.float16)
    arguments = [np.ascontiguousarray(a) if is_array(a) else a for a in drawn]
    arguments = [a[()] if is_array(a) and a.ndim == 0 else a for a in arguments]
    arrays = [a for a in arguments if is_array(a)]
    assume(all(a.size and np.isfinite(a).all() for a in arrays) and np.ndim(arguments[0]) > 0)
    truth, budget = float16_budget(row, [a.copy() if is_array(a) else a for a in arguments])
    assume(all(largest(t) < 6e4 for t in truth))
    body = body_of(Device(data.draw(st.integers(0, 9))), row.name)
    assert body is not None
    returned = body(*arguments)
    if returned is not NotImplemented:
        returned = returned if isinstance(returned, tuple) else (returned,)
        found = [value for value in (*returned, *(arguments[i] for i in row.writes)) if value is not None]
        assert_within([np.asarray(value, np.float64) for value in found], truth, budget)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_statistics_of_16_bit_arrays_are_in_float32(kind: str) -> None:
    """A backward pass takes them as the forward pass makes them; other arrays of another dtype are declined."""
    x, weight = (np.random.default_rng(0).standard_normal(shape).astype(kind) for shape in ((3, 40), (40,)))
    forward, backward = (cuda.body(Device(), f"layer_norm_{pass_}") for pass_ in ("forward", "backward"))
    assert forward is not None
    assert backward is not None
    y, mean, rstd = forward(x, weight, None, 1e-5)
    assert (y.dtype, mean.dtype, rstd.dtype) == (kind, "float32", "float32")
    assert [d.dtype for d in backward(y, x, weight, mean, rstd, True)] == [kind, "float32", "float32"]
    for arguments in ((y, x, weight.astype("float64")), (y.astype("float64"), x, weight)):
        assert backward(*arguments, mean, rstd, True) is NotImplemented
    assert backward(y, x, weight, mean.astype("float64"), rstd, True) is NotImplemented


CONVERSIONS = """
template <typename real>
__global__ void there(const float *from, real *to, int size) {
    for (int i = threadIdx.x; i < size; i += blockDim.x) narrow(from[i], to[i]);
}
template <typename real>
__global__ void back(const real *from, float *to, int size) {
    for (int i = threadIdx.x; i < size; i += blockDim.x) to[i] = widen(from[i]);
}
"""


def test_conversions_to_16_bits() -> None:
    """Every bfloat16 and float16 keeps its bits there and back; between two it is the nearer or the even."""
    text = cuda.source("linear") + CONVERSIONS
    every = np.arange(2**16, dtype=np.uint32)
    bfloat16 = (every << 16).view(np.float32)
    float16 = every.astype(np.uint16).view(np.float16).astype(np.float32)
    for real, values in (("bfloat16", bfloat16), ("float16", float16)):
        finite = np.sort(values[np.isfinite(values)])
        below, above = finite[:-1].astype(np.float64), finite[1:].astype(np.float64)
        between = np.concatenate([below + (above - below) * part for part in (0.25, 0.5, 0.75)]).astype(np.float32)
        expected = nearest(real, between)
        got, again = convert(text, real, between), convert(text, real, values)
        assert np.array_equal(got, expected)
        assert np.array_equal(again, values, equal_nan=True)


def convert(text: str, real: str, values: np.ndarray) -> np.ndarray:
    """float32 -> 16 bits -> float32, by the kernels' functions."""
    program = Program({"v": (text, [f"there<{real}>", f"back<{real}>"])})
    bits, result = np.zeros(len(values), np.uint16), np.zeros_like(values)
    for kernel, a, b in (("there", values, bits), ("back", bits, result)):
        arguments = [np.uintp(a.ctypes.data), np.uintp(b.ctypes.data), np.int32(len(values))]
        program.launch("v", f"{kernel}<{real}>", (1,), (32,), 0, 0, arguments)
    return result


def nearest(real: str, values: np.ndarray) -> np.ndarray:
    if real == "float16":
        return values.astype(np.float16).astype(np.float32)
    half_way = values.view(np.uint32).astype(np.uint64) + 0x7FFF + ((values.view(np.uint32) >> 16) & 1)
    return ((half_way >> 16) << 16).astype(np.uint32).view(np.float32)


def in_one_part(kernel: Kernel, found: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """The results, a statistic in two parts as their sum: it is NaN if either is."""

    def joined(place: int, array: np.ndarray | None) -> np.ndarray | None:
        if array is None or place not in kernel.statistics or array.ndim < 2 or array.shape[-1] != 2:
            return array
        return array.sum(axis=-1)

    return [joined(place, array) for place, array in enumerate(found)]


@every_kernel
@settings(max_examples=10)
@given(data=st.data())
def test_nan_and_infinities_pass_as_in_the_reference(row: KernelRow, data: Any) -> None:
    example = data.draw(row.examples)
    places = [i for i, a in enumerate(example.make()) if is_array(a) and a.dtype.kind == "f" and a.size]
    assume(places)
    argument, where, value = data.draw(st.sampled_from(places)), data.draw(seeds), data.draw(not_finite)

    def spoilt() -> list[Any]:
        arguments = example.make(np.float32)
        array = np.array(arguments[argument])
        array.reshape(-1)[where % array.size] = value
        arguments[argument] = array
        return arguments

    expected = all_results(row, "reference", spoilt())
    with emulated(Device()):
        got = all_results(row, "cython", spoilt())
    is_causal = row.name.startswith("attention") and next(a for a in example.make() if isinstance(a, bool))
    kernel = row.kernel or REGISTRY[row.name]
    names = dict(enumerate(inspect.signature(kernel.reference).parameters))
    for g, e in zip(in_one_part(kernel, got), in_one_part(kernel, expected), strict=True):
        assert (g is None) == (e is None)
        if g is None or e is None:
            continue
        if is_causal or row.name == "decode_block":
            # The reference multiplies by 0 what the mask hides, or a longer row has, and the kernels do not look at it.
            assert (np.isfinite(g) | ~np.isfinite(e)).all()
        elif names.get(argument) in cuda.STATISTICS:
            # No forward pass gives a statistic that is infinite: whether its parts cancel to NaN makes no difference.
            assert np.array_equal(np.isfinite(g), np.isfinite(e))
        else:
            assert np.array_equal(np.isnan(g), np.isnan(e))
            assert np.array_equal(np.isinf(g), np.isinf(e))


@every_kernel
def test_sizes_that_cannot_be_counted_in_32_bits_go_to_the_reference(row: KernelRow) -> None:
    """Rows or columns of 2**30 and more: arrays of one number, seen many times, that no kernel looks at."""
    if row.name in ARGUMENTS:
        return  # those that take many arrays count sizes in 64 bits; they would read these as if they lay in memory
    example = next(e for e in some_examples(row.examples, 20) if all(a.size for a in e.make() if is_array(a)))
    arguments = example.make(np.float32)
    for place, array in enumerate(arguments):
        if not is_array(array) or array.ndim == 0 or (row.name in STRUCTURED and place > 0):
            continue
        for axis in range(array.ndim):
            huge = list(arguments)
            shape = [2**30 if i == axis else 1 for i in range(array.ndim)]
            huge[place] = np.broadcast_to(array.reshape(-1)[0], shape)
            body = body_of(Device(), row.name)
            assert body is not None
            assert body(*huge) is NotImplemented


def test_grids_that_no_gpu_takes_go_to_the_reference() -> None:
    """More than 65535 blocks along an axis other than the first."""
    tall = np.broadcast_to(np.float32(0), (1, 1, 2**21, 8))
    forward, backward = (cuda.body(Device(), name) for name in ("attention_forward", "embedding_backward"))
    assert forward is not None
    assert backward is not None
    assert forward(tall, tall, tall, True, 1.0, 0.0, 0, 0) is NotImplemented
    wide = np.broadcast_to(np.float32(0), (1, 2**29 + 1))
    assert backward(wide, np.zeros(1, np.int64), wide) is NotImplemented


@pytest.mark.parametrize("check", [check for checks in CHECKS.values() for check in checks])
@pytest.mark.parametrize("fence", ["behind", "before"])
def test_beyond_the_rows(check: Any, fence: str) -> None:
    check(Device(fence=fence))


def test_every_launcher_has_a_row() -> None:
    cuda.find("")
    assert sorted(set(cuda.LAUNCHERS) - set(NAMES)) == []


@every_kernel
def test_it_is_the_cuda_body_that_runs(row: KernelRow) -> None:
    """For every example that has elements and lies in memory row by row, but for heads of attention above 128."""
    for example in some_examples(row.examples, 20):
        arguments = example.make(np.float32)
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        declined = row.name.startswith("attention") and arrays[0].shape[-1] > HEADS[-1]
        if all(a.size and a.flags.c_contiguous for a in arrays) and not declined:
            device = Device()
            with emulated(device):
                results(row, "cython", arguments)
            assert device.launched, example
