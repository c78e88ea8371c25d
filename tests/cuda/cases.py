"""The rows of the CUDA kernels: those of every kernel, and wider ones, for blocks of several warps and several blocks.

`emulated(device)` puts the CUDA bodies, run on the CPU, in the place of the compiled ones; see `emulator.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st

import tinygpt.ops
import tinygpt.optim  # noqa: F401  the kernels of both are registered
from tests.cuda.decode_cases import DECODE_ROWS, STRUCTURED, flat_body
from tests.cuda.emulator import Device
from tests.ops.cases import KERNEL_ROWS
from tests.ops.drawing import Example, Input, KernelRow, inputs, normal, positive, seeds
from tinygpt._ext import cuda
from tinygpt.kernel import REGISTRY, Kernel

# Several calls at once (Kernel.each): their arguments one behind the other ------------------------------

ARGUMENTS = {
    "adamw_update_each": 11,
    "sum_of_squares_each": 1,
    "rounded_each": 2,
    "sum_of_squares_on_device": 1,
}  # of one call
lengths = st.sampled_from(
    [1, 3, 64, 1023, 1024, 1025, 4096, 4100, 9001]
)  # a block takes 1024 elements, or 4096 in packs


def calls_of(name: str, arguments: Sequence[Any]) -> list[Sequence[Any]]:
    size = ARGUMENTS[name]
    return [arguments[i : i + size] for i in range(0, len(arguments), size)]


def each(name: str, in_place: bool = False) -> Kernel:
    """A kernel called with the arguments of several calls, and its reference: one call after the other."""

    def one_by_one(*arguments: Any) -> Any:
        reference = REGISTRY[name.removesuffix("_each").removesuffix("_on_device")].reference
        return tuple(reference(*call) for call in calls_of(name, arguments))

    one_by_one.__name__ = name
    return Kernel(one_by_one, in_place=in_place)


class There:
    """A factor on the device, as `tinygpt.optim.clip.ScaleOnDevice` holds it."""

    def __init__(self, state: list[float]) -> None:
        self.on_device = np.array(state)

    def __float__(self) -> float:
        return float(self.on_device[0])


SCALES = [1.0, 0.3, There([0.3, 7.0, 1.0]), There([np.nan, 7.0, 0.0])]


@st.composite
def three_parameters(draw: Any) -> Example:
    """Three parameters with rates of their own; what they share is drawn once."""
    betas, eps, grad_scale = (0.9, 0.99), draw(st.sampled_from([1e-8, 0.1])), draw(st.sampled_from(SCALES))
    arguments: list[Any] = []
    for _ in range(3):
        shape = (draw(lengths),)
        arguments += [Input(shape, "C", draw(seeds), values) for values in (normal, normal, normal, positive)]
        lr, weight_decay = draw(st.sampled_from([1e-2, 0.5])), draw(st.sampled_from([0.0, 0.1]))
        arguments += [lr, *betas, eps, weight_decay, draw(st.integers(1, 1000)), grad_scale]
    return Example(tuple(arguments))


@st.composite
def several_arrays(draw: Any) -> Example:
    return Example(tuple(draw(inputs((size,))) for size in draw(st.lists(lengths, min_size=1, max_size=5))))


@st.composite
def several_roundings(draw: Any) -> Example:
    """An array of several blocks, and others, each with the 16-bit type that NumPy has."""
    sizes = [draw(st.sampled_from([4100, 9001])), *draw(st.lists(lengths, max_size=3))]
    return Example(tuple(value for size in sizes for value in (draw(inputs((size,))), "float16")))


EACH_ROWS = [
    KernelRow(
        "adamw_update_each", three_parameters(), (0, 2, 3, 11, 13, 14, 22, 24, 25), each("adamw_update_each", True)
    ),
    KernelRow("sum_of_squares_each", several_arrays(), (), each("sum_of_squares_each")),
    KernelRow("sum_of_squares_on_device", several_arrays(), (), each("sum_of_squares_on_device")),
    KernelRow(
        "rounded_each",
        several_roundings(),
        (),
        each("rounded_each"),
        declines=lambda dtype: dtype != np.float32,
    ),
]
ROWS = [
    *[
        KernelRow(row.name, st.one_of(row.examples, row.wide), row.writes, declines=row.declines)
        for row in KERNEL_ROWS
        if row.wide is not None
    ],
    *EACH_ROWS,
    *DECODE_ROWS,
]
NAMES = [row.name for row in ROWS]


def body_of(device: Device, kernel: str) -> Callable[..., Any] | None:
    """The CUDA body of a kernel of the rows."""
    body = cuda.body(device, kernel)
    if body is not None and kernel in STRUCTURED:
        return flat_body(kernel, body)
    if body is None or kernel not in ARGUMENTS:
        return body

    def of_several(*arguments: Any) -> Any:
        returned = body(calls_of(kernel, arguments))
        return returned if returned is NotImplemented else tuple(returned)

    return of_several


@contextlib.contextmanager
def emulated(device: Device) -> Iterator[None]:
    """Inside the block `use_kernels("cython")` means the CUDA bodies on this device."""

    def native_body(kernel: str, required: bool = False) -> Callable[..., Any] | None:
        return body_of(device, kernel)

    with patch("tinygpt.kernel.numpy_backend.native_body", native_body):
        yield


class Misaligned(Example):
    """The same arguments, all arrays one element behind a multiple of 16 bytes: no access to packs is possible."""

    def make(self, dtype: Any = np.float64) -> list[Any]:
        return [
            self.shifted(array, self.arrays[i]) if isinstance(array, np.ndarray) else array
            for i, array in enumerate(super().make(dtype))
        ]

    @staticmethod
    def shifted(array: np.ndarray, drawn: Input) -> np.ndarray:
        if not array.flags.c_contiguous:
            return array
        memory = np.empty(array.nbytes + 32, np.uint8)
        start = -memory.ctypes.data % 16 + array.itemsize
        copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copy.flags.writeable = drawn.layout != "read-only"
        return copy


def maybe_misaligned(example: Example, shift: bool) -> Example:
    return Misaligned(example.arrays, example.options) if shift else example
