"""Packed matrices: weights stored in 16, 8 or 4 bits and unpacked during the multiplication.

A model that generates one token at a time reads each weight once per token, for only one multiplication and one
addition. So its speed is limited by memory bandwidth, and halving a weight's bytes halves the time. The formats:

- bfloat16: the upper 16 bits of a float32, rounded to nearest, ties to even: 8 significant bits, the same exponents
- int8: w ~ q * scale with q in -127 .. 127 and scale = max|w| / 127: one scale for each output, or one for each `group`
  of the terms of its sum
- int4: w ~ q * scale with q in -8 .. 7, one scale for 32 terms of a sum: `_four_bits.py`

The error of a weight in int8 is at most scale / 2, so an output y = sum over k of x_k w_k is off by at most
scale / 2 * sum |x_k|, and typically by far less, as errors cancel. Smaller groups follow outliers more closely.

Nothing else is rounded, unless `activations` asks for it (`_integer_product.py`): products, sums and activations are
float32, and a packed product equals the product with `unpack(matrix)` up to the order of summation.

No oracle: these products are for inference only, without a gradient (packed_linear.py has one), and the reference is
the product with the unpacked matrix.

Shapes: W (K, N) multiplies from the right, y = x W; its scales are (K / group rounded up, N). The embedding (V, C) is
also the output head's matrix, y = x W.T; its scales are (V, C / group rounded up). Packed arrays have the shape of the
original, except in int4.
Source: bfloat16: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019; int8 with a scale per output:
Jacob et al., "Quantization and Training of Neural Networks ...", 2018; weights alone, in groups: Dettmers et al.,
"LLM.int8()", 2022, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..backends import array_module
from ..checks import whole_number
from ..errors import RangeError, UsageError
from ..kernel import kernel
from ..typing import Array
from . import _four_bits
from ._bfloat16 import from_bfloat16, to_bfloat16
from ._integer_product import integer_product
from ._matmul import matmul_arrays

FORMATS = ("float32", "bfloat16", "int8", "int4")
GROUP_UNIT = 8  # groups are multiples of it, so that no SIMD vector of the compiled product needs two scales
BLOCK = 1 << 14  # how many weights to pack at a time, so that intermediate results fit into the cache
FEW_ROWS = 16  # up to this many rows, most of a product's time goes into reading the weights


class PackingError(UsageError):
    """The weights are valid, but a model of these layers and sizes can't be packed in this format."""


class Matrix(NamedTuple):
    """A weight matrix in one of the formats.

    data: float32, uint16 (bfloat16), int8, or uint32 (int4). scale, group: of int8 and int4 only. outputs: how many
    sums the matrix has, of int4 only, whose data has room for a multiple of 16. activations: "int8" if products round
    the activations to 8 bits too (`_integer_product.py`); of int8 and int4 only.
    """

    data: Array
    scale: Array | None = None
    group: int | None = None
    outputs: int | None = None
    activations: str | None = None

    @property
    def format(self) -> str:
        names = {"uint16": "bfloat16", "int8": "int8", "uint32": "int4"}
        return names.get(self.data.dtype.name, self.data.dtype.name)

    def weight_shape(self, axis: int = 0) -> tuple[int, int]:
        """The shape of the weights. axis: as in `pack`."""
        if self.outputs is None:
            rows, columns = self.data.shape
            return rows, columns
        terms = self.data.shape[1] * _four_bits.WORD
        return (terms, self.outputs) if axis == 0 else (self.outputs, terms)

    @property
    def size(self) -> int:
        """The number of weights."""
        rows, columns = self.weight_shape()
        return rows * columns

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


def pack(weight: Array, format: str, axis: int = 0, group: int | None = None) -> Matrix:
    """Convert a weight matrix (float32) to one of FORMATS.

    axis: the axis that products sum over: 0 for W in x W, 1 for the embedding. group: for int8, how many terms share a
    scale, a multiple of 8; None means the whole axis. Raises UsageError, RangeError unless all weights are finite.
    """
    check_format(format, group)
    check_terms("pack", format, weight.shape[axis])
    if format == "float32":
        return Matrix(weight)
    require_finite(weight)
    if format == "int4":
        return _to_int4(weight if axis == 0 else weight.T)
    return _to_bfloat16(weight) if format == "bfloat16" else _to_int8(weight, axis, group)


def check_format(format: str, group: int | None) -> None:
    """Raise UsageError for an invalid format or group."""
    if format not in FORMATS:
        raise UsageError(f"pack: there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    if group is None:
        return
    if format != "int8":
        raise UsageError(f"pack: group={group!r} is for int8 only, not for {format}: leave it out")
    if whole_number("pack", "group", group) % GROUP_UNIT:
        raise UsageError(f"pack: group must be a multiple of {GROUP_UNIT}, not {group}")


def check_terms(operation: str, format: str, terms: int, where: str = "this matrix") -> None:
    """Raise PackingError if sums of this many terms can't be packed."""
    unit = _four_bits.GROUP
    if format == "int4" and (terms % unit or not terms):
        raise PackingError(
            f"{operation}: int4 packs {unit} terms of a sum together, but {where} has sums of {terms}: choose int8 or "
            "bfloat16"
        )


def require_finite(weight: Array, what: str = "the weights") -> None:
    """Raise RangeError unless all weights are finite: a packed matrix can't represent nan and inf."""
    for rows in _blocks(weight):
        if not array_module(weight).isfinite(weight[rows]).all():
            raise RangeError(f"pack: {what} hold nan or inf, which a packed matrix can't")


def _blocks(weight: Array) -> Iterator[slice]:
    """Slices of a matrix's rows, small enough that intermediate results stay in the cache."""
    step = max(1, BLOCK // max(1, weight.shape[1]))
    for begin in range(0, len(weight), step):
        yield slice(begin, min(len(weight), begin + step))


def _to_bfloat16(weight: Array) -> Matrix:
    data = array_module(weight).empty(weight.shape, np.uint16)
    for rows in _blocks(weight):
        data[rows] = to_bfloat16(weight[rows])
    return Matrix(data)


def _to_int8(weight: Array, axis: int, group: int | None) -> Matrix:
    xp = array_module(weight)
    length = weight.shape[axis]
    group = length if group is None else min(group, length)
    groups = -(-length // group)
    largest = xp.empty((groups, weight.shape[1]) if axis == 0 else (len(weight), groups), weight.dtype)
    for g in range(groups):  # CuPy has no maximum.reduceat
        terms = slice(g * group, (g + 1) * group)
        part = weight[terms] if axis == 0 else weight[:, terms]
        largest[(slice(None),) * axis + (g,)] = xp.maximum(part.max(axis=axis), -part.min(axis=axis))
    # A subnormal scale would be too inaccurate: weight / scale could exceed 127. For zeros any scale will do.
    scale = xp.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    data = xp.empty(weight.shape, np.int8)
    for rows in _blocks(weight):
        quotient = weight[rows] / _spread(scale, group, axis, rows, weight.shape[1])
        data[rows] = xp.clip(xp.rint(quotient), -127, 127)
    return Matrix(data, scale, group)


def _to_int4(weight: Array) -> Matrix:
    """weight (terms, outputs)."""
    data, scale = _four_bits.to_panels(weight)
    return Matrix(data, scale, _four_bits.GROUP, weight.shape[1])


def _spread(scale: Array, group: int, axis: int, rows: slice, columns: int) -> Array:
    """The scale of each weight in some rows of a matrix: an array that broadcasts to (rows, columns)."""
    xp = array_module(scale)
    if axis == 0:
        return scale[xp.arange(rows.start, rows.stop) // group]  # (rows, columns)
    return scale[rows] if scale.shape[1] == 1 else scale[rows][:, xp.arange(columns) // group]


def unpack(matrix: Matrix, axis: int = 0) -> Array:
    """The float32 weights that a Matrix stands for. axis: as in `pack`."""
    if matrix.format not in ("bfloat16", "int8", "int4"):
        return matrix.data
    return unpack_into(array_module(matrix.data).empty(matrix.weight_shape(axis), np.float32), matrix, axis)


@kernel(in_place=True)
def unpack_into(out: Array, matrix: Matrix, axis: int) -> Array:
    """The packed weights as float32, written into out (rows, columns). axis: as in `pack`."""
    data, scale, group, outputs = matrix[:4]
    if scale is None or group is None:
        out[...] = from_bfloat16(data)
        return out
    if outputs is not None:
        weights = _four_bits.from_panels(data, scale, outputs)
        out[...] = weights if axis == 0 else weights.T
        return out
    for rows in _blocks(data):
        out[rows] = data[rows] * _spread(scale, group, axis, rows, data.shape[1])
    return out


def rows_of(matrix: Matrix, ids: Array) -> Array:
    """The rows `ids` (N,) of a packed embedding (V, C), as float32 (N, C)."""
    if matrix.outputs is not None and matrix.scale is not None:
        return _four_bits.rows_of(matrix.data, matrix.scale, ids)
    scale = None if matrix.scale is None else matrix.scale[ids]
    return unpack(Matrix(matrix.data[ids], scale, matrix.group), axis=1)


@kernel
def few_rows_product(x: Array, matrix: Matrix) -> Array:
    """x (M, K) float32, matrix (K, N) -> x W (M, N)."""
    if matrix.activations is not None and matrix.scale is not None and matrix.group is not None:
        if matrix.outputs is not None:
            data, scale = _four_bits.integers(matrix.data, matrix.scale, matrix.outputs)
            return integer_product(x, data, scale, matrix.group, pieces=1)
        return integer_product(x, matrix.data, matrix.scale, matrix.group)
    return x @ unpack(matrix)


@kernel(in_place=True)
def few_rows_product_transposed(x: Array, matrix: Matrix, out: Array) -> Array:
    """x (M, K) float32, matrix (N, K) -> x W.T (M, N), written into out."""
    if matrix.activations is not None and matrix.scale is not None and matrix.group is not None:
        if matrix.outputs is not None:
            out[...] = few_rows_product.reference(x, matrix)
        else:
            out[...] = integer_product(x, matrix.data.T, matrix.scale.T, matrix.group, pieces=1)
        return out
    return matmul_arrays(x, unpack(matrix, axis=1).T, out=out)


def packed_product(x: Array, matrix: Matrix) -> Array:
    """x (M, K) float32 times a packed matrix (K, N) -> (M, N): our kernel for few rows, the matrix library for many.

    That knows only float32 activations: where they are rounded, our kernel multiplies any number of rows.
    """
    few = len(x) <= FEW_ROWS or matrix.activations is not None
    return few_rows_product(x, matrix) if few else matmul_arrays(x, unpack(matrix))


def packed_product_transposed(x: Array, matrix: Matrix) -> Array:
    """x (M, K) float32 times the transpose of a packed matrix (N, K) -> (M, N)."""
    if len(x) > FEW_ROWS and matrix.activations is None:
        return matmul_arrays(x, unpack(matrix, axis=1).T)
    out = array_module(x).empty((len(x), matrix.weight_shape(1)[0]), x.dtype)
    return few_rows_product_transposed(x, matrix, out)
