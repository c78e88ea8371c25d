"""Rows of the CUDA kernels for packed weights and for writing: their weights are structures of arrays.

A row has the arrays in place of the structures. Packed weights are drawn as integers, and a kernel of the row's own
makes structures of them: `flat`. In float64, then, only the scales are other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import tinygpt.ops.decode_block  # noqa: F401  it registers its kernel
from tests.ops.blocks import PARAMETERS, block_of
from tests.ops.drawing import Example, Input, KernelRow, integers_below, normal, positive, seeds
from tinygpt.backends import get
from tinygpt.gpt import ACTIVATIONS, Block
from tinygpt.kernel import REGISTRY, Kernel
from tinygpt.ops.packed import Matrix

# Lengths around packs of 4, 8 and 16, around a warp of them, and beyond several blocks.
lengths = st.sampled_from([1, 4, 7, 8, 16, 17, 33, 64, 80, 128, 136, 272, 528])
few = st.sampled_from([1, 2, 3, 4, 5, 8, 17])
groups = st.sampled_from([None, 8, 16, 24, 48, 1000])

# Structures ---------------------------------------------------------------------------------------


def matrix_of(data: Any, scale: Any, group: int | None) -> Matrix:
    """The Matrix of drawn integers: bits of bfloat16 where there is no scale."""
    if scale is None:
        return Matrix(data.astype(np.uint16))
    return Matrix(data.astype(np.int8), scale.astype(np.float32), group)


def structured(name: str, arguments: Any) -> list[Any]:
    """The arguments of a kernel, of those of its row."""
    if name in ("few_rows_product", "few_rows_product_transposed"):
        x, data, scale, group, *out = arguments
        return [x, matrix_of(data, scale, group), *out]
    if name == "unpack_into":
        out, data, scale, group, axis = arguments
        return [out, matrix_of(data, scale, group), axis]
    x, keys, values, length, eps, activation, scale, *weights = arguments
    block = block_of(dict(zip(PARAMETERS, weights, strict=True)), keys.shape[1], eps, activation, scale)
    extension = get("numpy").extension()
    work = 1 if extension is None else extension.decode_work(*x.shape, block.mlp.inner)
    return [x, block, keys, values, length, np.empty(min(work, 2**26), x.dtype)]  # sizes beyond are refused


# What is written, of the arguments with structures.
STRUCTURED_WRITES = {
    "few_rows_product": (), "few_rows_product_transposed": (2,), "unpack_into": (0,), "decode_block": (0, 2, 3),
}  # fmt: skip


def flat(name: str, in_place: bool) -> Kernel:
    """The kernel with the arguments of a row; its reference is the kernel's."""

    def reference(*arguments: Any) -> Any:
        return REGISTRY[name].reference(*structured(name, arguments))

    reference.__name__ = name
    made = Kernel(reference, in_place=in_place)
    made.integers = tuple(range(5))  # packed weights are drawn as integers, and lengths are
    return made


def flat_body(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """A CUDA body, called with the arguments of a row; or as a reference calls it, with structures."""

    def call(*arguments: Any) -> Any:
        structures = any(isinstance(a, Matrix | Block) for a in arguments)
        return body(*(arguments if structures else structured(name, arguments)))

    return call


# Arguments ----------------------------------------------------------------------------------------


def bits_of_bfloat16(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32).view(np.uint32).astype(np.int64) >> 16


def from_minus_127(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-127, 128, shape)


@st.composite
def packed_arguments(draw: Any, axis: int) -> list[Any]:
    """data (A, B), scales and group, of a matrix whose products sum over `axis`."""
    shape = (draw(lengths), draw(lengths))
    if draw(st.booleans()):
        return [Input(shape, "C", draw(seeds), bits_of_bfloat16), None, None]
    group = min(draw(groups) or shape[axis], shape[axis])
    counts = list(shape)
    counts[axis] = -(-shape[axis] // group)
    return [Input(shape, "C", draw(seeds), from_minus_127), Input(tuple(counts), "C", draw(seeds), positive), group]


@st.composite
def product_arguments(draw: Any, transposed: bool) -> Example:
    matrix = draw(packed_arguments(1 if transposed else 0))
    M, (rows, columns) = draw(few), matrix[0].shape
    K, N = (columns, rows) if transposed else (rows, columns)
    out = [Input((M, N), "C", draw(seeds))] if transposed else []
    return Example((Input((M, K), "C", draw(seeds)), *matrix, *out))


@st.composite
def unpacking_arguments(draw: Any) -> Example:
    axis = draw(st.sampled_from([0, 1]))
    matrix = draw(packed_arguments(axis))
    return Example((Input(matrix[0].shape, "C", draw(seeds)), *matrix, axis))


def rather_small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights whose products with numbers around 1 are numbers around 1."""
    return np.asarray(rng.standard_normal(shape) * shape[0] ** -0.5)


@st.composite
def decoding_arguments(draw: Any) -> Example:
    M, H = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    D = draw(st.sampled_from([1, 4, 5, 8, 17, 30, 32, 40, 61, 64, 68, 128]))
    C, capacity = H * D, draw(st.sampled_from([1, 2, 31, 32, 63, 128, 129, 160, 257]))
    biased = draw(st.booleans())

    def vector(size: int) -> Any:
        return Input((size,), "C", draw(seeds), positive)

    def optional(size: int) -> Any:
        return vector(size) if biased else None

    def weight(rows: int, columns: int) -> Any:
        return Input((rows, columns), "C", draw(seeds), rather_small)

    cache, inner = (M, H, capacity, D), draw(st.sampled_from([4 * C, 4 * C, 1, 24, 33]))
    return Example(
        (
            Input((M, C), "C", draw(seeds)),
            Input(cache, "C", draw(seeds), normal), Input(cache, "C", draw(seeds), normal),
            Input((M,), "C", draw(seeds), integers_below(capacity)), draw(st.sampled_from([1e-5, 0.1])),
            draw(st.sampled_from([*ACTIVATIONS])), draw(st.sampled_from([None, 0.05, 1.0])),
            vector(C), optional(C), weight(C, 3 * C), optional(3 * C), weight(C, C), optional(C),
            vector(C), optional(C), weight(C, inner), optional(inner), weight(inner, C), optional(C),
        )
    )  # fmt: skip


def is_double(dtype: Any) -> bool:
    """The arrays beside packed weights are float32: others are the reference's."""
    return np.dtype(dtype) == np.float64


def packed_row(name: str, examples: Any, writes: tuple[int, ...]) -> KernelRow:
    return KernelRow(name, examples, writes, flat(name, bool(writes)), is_double)


DECODE_ROWS = [
    packed_row("few_rows_product", product_arguments(False), ()),
    packed_row("few_rows_product_transposed", product_arguments(True), (4,)),
    packed_row("unpack_into", unpacking_arguments(), (0,)),
    KernelRow("decode_block", decoding_arguments(), (0, 1, 2), flat("decode_block", True)),
]
STRUCTURED = {row.name for row in DECODE_ROWS}
