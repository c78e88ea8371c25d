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
from tests.ops.cases import (
    KERNEL_ROWS,
    adamw_update_examples,
    layer_norm_backward_examples,
    layer_norm_forward_examples,
    sum_of_squares_examples,
)
from tests.ops.cases.neural import (
    IGNORE,
    attention_arguments,
    cross_entropy_arguments,
    cross_entropy_inplace_arguments,
    dropout_arguments,
    embedding_arguments,
    fractions,
    kernel_rows,
    residual_arguments,
    targets_below,
    vector,
)
from tests.ops.cases.primitive import matrices, rows_and_bias
from tests.ops.drawing import Example, Input, KernelRow, inputs, mostly_contiguous, normal, positive, seeds
from tinygpt._ext import cuda
from tinygpt.kernel import REGISTRY, Kernel

# Around one, two and several warps, as packs of four, of two, and one by one; and beyond a block's most threads.
wide = st.sampled_from([31, 32, 64, 96, 127, 129, 132, 200, 260, 513, 520, 1030])
tall = st.sampled_from([1, 7, 17, 40])  # more than the warps of a block, and than a chunk of rows
pieces = st.sampled_from([1, 32, 33, 64, 200])  # of 32 positions
large = st.sampled_from([1, 37, 64, 130])
head_sizes = st.sampled_from([24, 32, 34, 64, 68, 100, 128, 130])

# Values of another size ---------------------------------------------------------------------------


def steep(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """So far apart that exp overflows unless the greatest of a row, its last, has been taken away."""
    return np.sort(300 * rng.standard_normal(shape), axis=-1)


def of_all_sizes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """From a tenth to 1e25: a cube of the largest is beyond float32."""
    return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-1, 25, shape))


@st.composite
def rows_of(draw: Any, values: Any, count: int = 1, targets: bool = False) -> Example:
    """`count` arrays (N, C) of these values, or normal ones and then one of these."""
    N, C = draw(tall), draw(wide)
    arrays = [Input((N, C), "C", draw(seeds), kind) for kind in [normal] * (count - 1) + [values]]
    more = [Input((N,), "C", draw(seeds), targets_below(C)), IGNORE] if targets else []
    return Example((*arrays, *more))


@st.composite
def logits_and_targets(draw: Any, count: int) -> Example:
    """`count` arrays and then targets, of several blocks or less than one."""
    shape = (draw(tall), draw(wide))
    return Example((*[Input(shape, "C", draw(seeds)) for _ in range(count)], Input(shape, "C", draw(seeds), fractions)))


def tiles_of_attention(backward: bool, D: int, Tq: int, Tk: int, is_causal: bool, dropout_p: float) -> Example:
    """Two heads of one sequence, or one of each of two."""
    B, H = (2, 1) if D == 7 else (1, 2)
    q, k, v, y, dy = (Input((B, H, T, D), "C", seed) for seed, T in enumerate((Tq, Tk, Tk, Tq, Tq)))
    options = (is_causal, 0.3, dropout_p, 2**40 + 1, 2**32 + 5)
    if not backward:
        return Example((q, k, v, *options))
    lse = Input((B, H, Tq, 2), "C", 9, positive)
    return Example((dy, q, k, v, y, lse, *options, *(Input((B, H, T, D)) for T in (Tq, Tk, Tk))))


TILES = [  # of 64 or 32 queries and 32 or 16 keys: whole ones, and one query or key more
    (32, 97, 65, False, 0.5),
    (32, 65, 97, True, 0.5),
    (7, 64, 64, True, 0.0),
    (100, 33, 49, False, 0.5),
]


def several_tiles(backward: bool = False) -> st.SearchStrategy[Example]:
    return st.sampled_from([tiles_of_attention(backward, *sizes) for sizes in TILES])


# Several calls at once (Kernel.each): their arguments one behind the other ------------------------------

ARGUMENTS = {"adamw_update_each": 11, "sum_of_squares_each": 1}  # of one call
lengths = st.sampled_from(
    [1, 3, 64, 1023, 1024, 1025, 4096, 4100, 9001]
)  # a block takes 1024 elements, or 4096 in packs


def calls_of(name: str, arguments: Sequence[Any]) -> list[Sequence[Any]]:
    size = ARGUMENTS[name]
    return [arguments[i : i + size] for i in range(0, len(arguments), size)]


def each(name: str, in_place: bool = False) -> Kernel:
    """A kernel called with the arguments of several calls, and its reference: one call after the other."""

    def one_by_one(*arguments: Any) -> Any:
        reference = REGISTRY[name.removesuffix("_each")].reference
        return tuple(reference(*call) for call in calls_of(name, arguments))

    one_by_one.__name__ = name
    return Kernel(one_by_one, in_place=in_place)


@st.composite
def three_parameters(draw: Any) -> Example:
    """Three parameters with rates of their own; what they share is drawn once."""
    betas, eps, grad_scale = (0.9, 0.99), draw(st.sampled_from([1e-8, 0.1])), draw(st.sampled_from([1.0, 0.3]))
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


def no_equal_rows(example: Example) -> bool:
    """Equal terms are rounded alike, and their errors add up; the rule takes them for random, as others are."""
    return all(a.layout != "broadcast" for a in example.arrays if isinstance(a, Input))


many_rows = {"N": st.just(513), "C": st.sampled_from([3, 132])}  # more than blocks
WIDE_ROWS = [
    KernelRow("layer_norm_forward", layer_norm_forward_examples(C=wide)),
    KernelRow(
        "layer_norm_backward",
        st.one_of(
            layer_norm_backward_examples(N=tall, C=wide),
            layer_norm_backward_examples(**many_rows).filter(no_equal_rows),
        ),
    ),
    KernelRow("residual_layer_norm_forward", residual_arguments(C=wide)),
    KernelRow(
        "residual_layer_norm_backward",
        st.one_of(
            residual_arguments(True, N=tall, C=wide), residual_arguments(True, **many_rows).filter(no_equal_rows)
        ),
    ),
    KernelRow("add_bias", mostly_contiguous(rows_and_bias(N=tall, C=wide)), writes=(0,)),
    KernelRow("column_sum", matrices(C=st.sampled_from([31, 64, 130, 260]))),
    KernelRow("gelu_forward", st.one_of(kernel_rows(C=wide), rows_of(of_all_sizes))),
    KernelRow("gelu_backward", st.one_of(kernel_rows(count=2, C=wide), rows_of(of_all_sizes, 2))),
    KernelRow("gelu_erf_forward", st.one_of(kernel_rows(C=wide), rows_of(of_all_sizes))),
    KernelRow("gelu_erf_backward", st.one_of(kernel_rows(count=2, C=wide), rows_of(of_all_sizes, 2))),
    KernelRow("bias_gelu_forward", kernel_rows(vector, N=tall, C=wide)),
    KernelRow("bias_gelu_backward", kernel_rows(vector, count=2, N=tall, C=wide)),
    KernelRow("softmax_forward", st.one_of(kernel_rows(C=wide), rows_of(steep))),
    KernelRow("softmax_backward", kernel_rows(count=2, C=wide)),
    KernelRow("log_softmax_forward", st.one_of(kernel_rows(C=wide), rows_of(steep))),
    KernelRow("log_softmax_backward", kernel_rows(count=2, C=wide)),
    KernelRow("cross_entropy_forward", st.one_of(cross_entropy_arguments(V=wide), rows_of(steep, targets=True))),
    KernelRow("cross_entropy_backward", cross_entropy_arguments(backward=True, V=wide)),
    KernelRow("cross_entropy_inplace", mostly_contiguous(cross_entropy_inplace_arguments(V=wide)), writes=(0,)),
    KernelRow("binary_cross_entropy_forward", logits_and_targets(1)),
    KernelRow("binary_cross_entropy_backward", logits_and_targets(2)),
    KernelRow("attention_forward", st.one_of(attention_arguments(D=head_sizes), several_tiles())),
    KernelRow(
        "attention_backward",
        st.one_of(attention_arguments(True, D=head_sizes), several_tiles(True)),
        writes=(11, 12, 13),
    ),
    KernelRow("embedding_forward", embedding_arguments(C=wide)),
    KernelRow(
        "embedding_backward",
        mostly_contiguous(embedding_arguments(True, V=st.sampled_from([1, 2, 3, 33]), C=wide, N=pieces)),
        writes=(2,),
    ),
    KernelRow("dropout_apply", dropout_arguments(C=wide)),
    KernelRow("adamw_update", adamw_update_examples(size=large), writes=(0, 2, 3)),
    KernelRow("sum_of_squares", sum_of_squares_examples(size=large)),
]
EACH_ROWS = [
    KernelRow(
        "adamw_update_each", three_parameters(), (0, 2, 3, 11, 13, 14, 22, 24, 25), each("adamw_update_each", True)
    ),
    KernelRow("sum_of_squares_each", several_arrays(), (), each("sum_of_squares_each")),
]
NARROW = {row.name: row for row in KERNEL_ROWS}
ROWS = [
    *[KernelRow(row.name, st.one_of(NARROW[row.name].examples, row.examples), row.writes) for row in WIDE_ROWS],
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
    return lambda *arguments: tuple(body(calls_of(kernel, arguments)))


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
