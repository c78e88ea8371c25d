"""The rows of the CUDA kernels: those of every kernel, and wider ones, for blocks of several warps and several blocks.

`emulated(device)` puts the CUDA bodies, run on the CPU, in the place of the compiled ones; see `cuda_emulator.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
from cuda_emulator import Device
from drawing import Example, Input, KernelRow
from hypothesis import strategies as st
from nn_cases import (
    attention_arguments,
    cross_entropy_arguments,
    cross_entropy_inplace_arguments,
    dropout_arguments,
    embedding_arguments,
    kernel_rows,
    residual_arguments,
    vector,
)
from op_cases import (
    KERNEL_ROWS,
    adamw_update_examples,
    layer_norm_backward_examples,
    layer_norm_forward_examples,
    sum_of_squares_examples,
)
from primitive_cases import matrices, rows_and_bias

from tinygpt._ext import cuda

# Around one, two and several warps, as packs of four, of two, and one by one; and beyond a block's most threads.
wide = st.sampled_from([31, 32, 64, 96, 127, 129, 132, 200, 260, 513, 520, 1030])
tall = st.sampled_from([1, 7, 17, 40])  # more than the warps of a block, and than a chunk of rows
large = st.sampled_from([1, 37, 64, 130])
head_sizes = st.sampled_from([24, 32, 34, 64, 68, 100, 128, 130])

WIDE_ROWS = [
    KernelRow("layer_norm_forward", layer_norm_forward_examples(C=wide)),
    KernelRow("layer_norm_backward", layer_norm_backward_examples(N=tall, C=wide)),
    KernelRow("residual_layer_norm_forward", residual_arguments(C=wide)),
    KernelRow("residual_layer_norm_backward", residual_arguments(backward=True, N=tall, C=wide)),
    KernelRow("add_bias", rows_and_bias(N=tall, C=wide), writes=(0,)),
    KernelRow("column_sum", matrices(C=st.sampled_from([31, 64, 130, 260]))),
    KernelRow("gelu_forward", kernel_rows(C=wide)),
    KernelRow("gelu_backward", kernel_rows(count=2, C=wide)),
    KernelRow("gelu_erf_forward", kernel_rows(C=wide)),
    KernelRow("gelu_erf_backward", kernel_rows(count=2, C=wide)),
    KernelRow("bias_gelu_forward", kernel_rows(vector, N=tall, C=wide)),
    KernelRow("bias_gelu_backward", kernel_rows(vector, count=2, N=tall, C=wide)),
    KernelRow("softmax_forward", kernel_rows(C=wide)),
    KernelRow("softmax_backward", kernel_rows(count=2, C=wide)),
    KernelRow("log_softmax_forward", kernel_rows(C=wide)),
    KernelRow("log_softmax_backward", kernel_rows(count=2, C=wide)),
    KernelRow("cross_entropy_forward", cross_entropy_arguments(V=wide)),
    KernelRow("cross_entropy_backward", cross_entropy_arguments(backward=True, V=wide)),
    KernelRow("cross_entropy_inplace", cross_entropy_inplace_arguments(V=wide), writes=(0,)),
    KernelRow("attention_forward", attention_arguments(D=head_sizes)),
    KernelRow("attention_backward", attention_arguments(backward=True, D=head_sizes), writes=(11, 12, 13)),
    KernelRow("embedding_forward", embedding_arguments(C=wide)),
    KernelRow("embedding_backward", embedding_arguments(backward=True, C=wide, N=st.sampled_from([1, 33, 64, 200]))),
    KernelRow("dropout_apply", dropout_arguments(C=wide)),
    KernelRow("adamw_update", adamw_update_examples(size=large), writes=(0, 2, 3)),
    KernelRow("sum_of_squares", sum_of_squares_examples(size=large)),
]
NAMES = [row.name for row in WIDE_ROWS]
NARROW = {row.name: row for row in KERNEL_ROWS}
ROWS = [KernelRow(row.name, st.one_of(NARROW[row.name].examples, row.examples), row.writes) for row in WIDE_ROWS]


@contextlib.contextmanager
def emulated(device: Device) -> Iterator[None]:
    """Inside the block `use_kernels("cython")` means the CUDA bodies on this device."""

    def native_body(kernel: str, required: bool = False) -> Callable[..., Any] | None:
        return cuda.body(device, kernel)

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
