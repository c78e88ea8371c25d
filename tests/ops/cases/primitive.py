"""The rows of the primitive operations; see `__init__.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.ops.cases import large as sizes
from tests.ops.cases.wide import tall, wide
from tests.ops.drawing import (
    Example,
    Input,
    KernelRow,
    Row,
    away_from_zero,
    distinct,
    inputs,
    integers_below,
    leading,
    mostly_contiguous,
    normal,
    positive,
    reduced,
    seeds,
    small,
)
from tinygpt import ops
from tinygpt.backends.numpy import native_body
from tinygpt.ops import arithmetic, elementwise, reductions
from tinygpt.ops.concatenate import Concatenate, Split
from tinygpt.ops.getitem import GetItem
from tinygpt.ops.linear import Linear, linear_composed
from tinygpt.ops.matmul import MatMul
from tinygpt.ops.shape import Reshape, Transpose
from tinygpt.ops.where import Where
from tinygpt.tensor import Tensor

# Shapes -------------------------------------------------------------------------------------------


@st.composite
def shapes(draw: Any, zero: bool = True, least: int = 0, most: int = 3) -> tuple[int, ...]:
    """Up to three axes; the last may be long, the others may be empty."""
    ndim = draw(st.integers(least, most))
    sizes = [draw(leading if zero else small) for _ in range(ndim)]
    return (*sizes[:-1], draw(reduced)) if ndim and draw(st.booleans()) else tuple(sizes)


@st.composite
def broadcastable(draw: Any, result: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `result`: leading axes left out, others set to 1."""
    kept = result[draw(st.integers(0, len(result))) :] if draw(st.booleans()) else result
    return tuple(1 if draw(st.booleans()) else size for size in kept)


@st.composite
def two_operands(draw: Any, a: Any = normal, b: Any = normal) -> Example:
    result = draw(shapes(zero=draw(st.integers(0, 3)) == 0, least=draw(st.sampled_from([0, 2, 3]))))
    one, other = result, draw(broadcastable(result))
    if draw(st.booleans()):
        one = draw(broadcastable(result))
    first, second = (one, other) if draw(st.booleans()) else (other, one)
    return Example((draw(inputs(first, a)), draw(inputs(second, b))))


@st.composite
def one_operand(draw: Any, values: Any = normal) -> Example:
    return Example((draw(inputs(draw(shapes()), values)),))


@st.composite
def powers(draw: Any) -> Example:
    """A base of either sign, to whole powers: 0, where the derivative is 0, and 1 among them."""
    return Example((draw(inputs(draw(shapes()), away_from_zero)),), {"exponent": draw(st.integers(-2, 4))})


# Reductions ---------------------------------------------------------------------------------------


@st.composite
def axes_of(draw: Any, ndim: int) -> Any:
    if ndim == 0 or draw(st.booleans()):
        return draw(st.sampled_from([None, ()]))
    chosen = draw(st.lists(st.integers(0, ndim - 1), min_size=1, unique=True))
    signed = tuple(axis - ndim * draw(st.booleans()) for axis in chosen)
    return signed[0] if len(signed) == 1 and draw(st.booleans()) else signed


@st.composite
def reduction(draw: Any, values: Any = normal, of_nothing: bool = False, correction: bool = False) -> Example:
    size = list(draw(shapes()))
    axis = draw(axes_of(len(size)))
    reduced_axes = range(len(size)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if not of_nothing:
        for i in reduced_axes:
            size[i] = max(size[i], 1)
    options = {"axis": axis, "keepdims": draw(st.booleans())}
    if correction:
        options["correction"] = (
            draw(st.sampled_from([0, 1, 0.5])) if math.prod(size[i] for i in reduced_axes) > 1 else 0
        )
    return Example((draw(inputs(size, values)),), options)


def mean_composed(x: Tensor, axis: Any, keepdims: bool) -> Tensor:
    total = x.sum(axis=axis, keepdims=keepdims)
    return total * (max(total.size, 1) / max(x.size, 1))


def var_composed(x: Tensor, axis: Any, keepdims: bool, correction: float) -> Tensor:
    centered = x - x.mean(axis=axis, keepdims=True)
    squares = (centered * centered).mean(axis=axis, keepdims=keepdims)
    if x.size == 0:
        return squares
    n = x.size / squares.size
    return squares * (n / (n - correction))


def minimum(torch: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    dim = tuple(range(x.ndim)) if axis is None else axis
    return x.clone() if dim == () else x.amin(dim=dim, keepdim=keepdims)


# Shapes and indices -------------------------------------------------------------------------------


@st.composite
def reshapes(draw: Any) -> Example:
    before = draw(shapes())
    after = list(draw(st.permutations(before)))
    if draw(st.booleans()):
        after.insert(draw(st.integers(0, len(after))), 1)
    if after and math.prod(after) and draw(st.booleans()):
        after[draw(st.integers(0, len(after) - 1))] = -1
    return Example((draw(inputs(before)),), {"shape": tuple(after)})


@st.composite
def transposes(draw: Any) -> Example:
    size = draw(shapes())
    order = tuple(axis - len(size) * draw(st.booleans()) for axis in draw(st.permutations(range(len(size)))))
    return Example((draw(inputs(size)),), {"axes": order})


@st.composite
def indexings(draw: Any) -> Example:
    """A part for some of the axes: integers, slices with steps of either sign, masks, repeating integer arrays."""
    size = draw(shapes(zero=False, least=1))
    several = draw(st.integers(1, 3))  # integer arrays in one key have one shape
    key: list[Any] = []
    for length in size[: draw(st.integers(0, len(size)))]:
        kind = draw(st.sampled_from(["integer", "slice", "array", "list"]))
        if kind == "integer":
            key.append(draw(st.integers(-length, length - 1)))
        elif kind == "slice":
            key.append(draw(st.slices(length)))
        else:
            indices = Input((several,), seed=draw(seeds), values=integers_below(length)).make()
            key.append(Tensor(indices - length * draw(st.booleans())) if kind == "array" else indices.tolist())
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), None)
    if draw(st.booleans()):
        key.append(Ellipsis)
    whole = draw(st.integers(0, 4)) == 0
    return Example((draw(inputs(size)),), {"key": Tensor(mask(size, draw(seeds))) if whole else tuple(key)})


def mask(size: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < 0.6


@st.composite
def pieces(draw: Any, equal: bool = False) -> Example:
    """Tensors to put together: equal but for one axis, or wholly equal."""
    size = draw(shapes(least=0 if equal else 1))
    axis = draw(st.integers(0, len(size) - (not equal)))
    count = draw(st.integers(1, 3))
    lengths = [size[axis] if equal and axis < len(size) else draw(leading) for _ in range(count)]
    each = [size if equal else (*size[:axis], length, *size[axis + 1 :]) for length in lengths]
    return Example(
        tuple(draw(inputs(part)) for part in each), {"axis": axis - (len(size) + equal) * draw(st.booleans())}
    )


@st.composite
def splits(draw: Any) -> Example:
    size = draw(shapes(least=1))
    axis = draw(st.integers(0, len(size) - 1))
    total = size[axis]
    if total and draw(st.booleans()):
        sizes: Any = draw(st.integers(1, total))
    else:
        first = draw(st.integers(0, total))
        sizes = [first, 0, total - first]
    return Example((draw(inputs(size)),), {"sizes": sizes, "axis": axis - len(size) * draw(st.booleans())})


def split_composed(x: Tensor, sizes: Any, axis: int) -> tuple[Tensor, ...]:
    axis %= x.ndim
    total = x.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    ends = np.cumsum(sizes)
    return tuple(x[(*(slice(None),) * axis, slice(end - size, end))] for size, end in zip(sizes, ends, strict=True))


def stack_composed(*tensors: Tensor, axis: int) -> Tensor:
    at = (slice(None),) * (axis % (tensors[0].ndim + 1))
    return ops.concatenate([x[(*at, None)] for x in tensors], axis)


@st.composite
def choices(draw: Any) -> Example:
    result = draw(shapes(zero=draw(st.integers(0, 3)) == 0, least=draw(st.sampled_from([0, 2, 3]))))
    a, b, condition = result, draw(broadcastable(result)), draw(broadcastable(result))
    chosen = Input(
        condition, draw(st.sampled_from(["C", "F", "strided"])), draw(seeds), lambda rng, s: rng.random(s) < 0.5
    )
    first, second = (a, b) if draw(st.booleans()) else (b, a)
    return Example((chosen, draw(inputs(first)), draw(inputs(second))))


def where_composed(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    chosen = Tensor(condition.data.astype(np.float64))
    return chosen * a + (1.0 - chosen) * b


# Products -----------------------------------------------------------------------------------------


@st.composite
def products(draw: Any) -> Example:
    """Matrices, batches of them, a batch against one matrix, operands of one axis."""
    M, K, N = draw(st.sampled_from([0, 1, 2, 3, 7])), draw(reduced), draw(small)
    batch = tuple(draw(st.lists(leading, max_size=2)))
    batches = [batch, draw(broadcastable(batch))]
    swapped = draw(st.booleans())
    a, b = (*batches[swapped], M, K), (*batches[not swapped], K, N)
    kind = draw(st.sampled_from(["both", "both", "one on the right", "one on the left", "row", "column", "dot"]))
    if kind == "one on the right":
        a, b = (*batch, M, K), (K, N)
    elif kind == "one on the left":
        a = (M, K)
    elif kind in ("row", "dot"):
        a = (K,)
    if kind in ("column", "dot"):
        b = (K,)
    return Example((draw(inputs(a)), draw(inputs(b))))


def matmul_composed(a: Tensor, b: Tensor) -> Tensor:
    rows = a if a.ndim > 1 else a[None, :]
    columns = b if b.ndim > 1 else b[:, None]
    y = (rows[..., :, :, None] * columns[..., None, :, :]).sum(axis=-2)
    if b.ndim == 1:
        y = y[..., 0]
    return y if a.ndim > 1 else y[..., 0, :] if b.ndim > 1 else y[..., 0]


@st.composite
def linears(draw: Any) -> Example:
    K, N = draw(reduced), draw(reduced)
    x = (*draw(st.lists(leading, max_size=2)), K)
    bias = [draw(inputs((N,)))] if draw(st.booleans()) else []
    return Example((draw(inputs(x)), draw(inputs((K, N))), *bias))


@st.composite
def rows_and_bias(draw: Any, N: Any = leading, C: Any = reduced) -> Example:
    N, C = draw(N), draw(C)
    layout = draw(st.sampled_from(["C", "F", "strided", "negative"]))
    return Example((Input((N, C), layout, draw(seeds)), draw(inputs((C,)))))


@st.composite
def matrices(draw: Any, C: Any = reduced) -> Example:
    return Example((draw(inputs((draw(st.sampled_from([1, 2, 5, 64, 1000, 0])), draw(C)))),))


@st.composite
def roundings(draw: Any, C: Any = reduced) -> Example:
    """An array, and the 16-bit type that NumPy has."""
    return Example((draw(inputs((draw(leading), draw(C)))), "float16"))


# The tables ---------------------------------------------------------------------------------------

ROWS = [
    Row("add", ops.add, two_operands(), (arithmetic.Add,), lambda a, b: a - (-b)),
    Row("sub", ops.sub, two_operands(), (arithmetic.Sub,), lambda a, b: a + (-b)),
    Row("mul", ops.mul, two_operands(), (arithmetic.Mul,)),
    Row("div", ops.div, two_operands(b=away_from_zero), (arithmetic.Div,), lambda a, b: a * b**-1),
    Row("neg", ops.neg, one_operand(), (arithmetic.Neg,), lambda a: 0.0 - a),
    Row("pow", ops.pow, two_operands(positive), (arithmetic.Pow,), lambda a, b: (b * a.log()).exp()),
    Row("pow of a number", lambda x, exponent: x**exponent, powers(), (arithmetic.Pow,), takes_nan=False),
    Row("exp", ops.exp, one_operand(), (elementwise.Exp,)),
    Row("log", ops.log, one_operand(positive), (elementwise.Log,)),
    Row("sqrt", ops.sqrt, one_operand(positive), (elementwise.Sqrt,), lambda x: x**0.5),
    Row("tanh", ops.tanh, one_operand(), (elementwise.Tanh,), lambda x: 2.0 * (2.0 * x).sigmoid() - 1.0),
    Row("sigmoid", ops.sigmoid, one_operand(), (elementwise.Sigmoid,), lambda x: 1.0 / (1.0 + (-x).exp())),
    Row("relu", ops.relu, one_operand(away_from_zero), (elementwise.Relu,), lambda x: ops.where(x > 0, x, 0.0)),
    Row("abs", ops.abs, one_operand(away_from_zero), (elementwise.Abs,), lambda x: ops.where(x > 0, x, -x)),
    Row("sum", ops.sum, reduction(of_nothing=True), (reductions.Sum,)),
    Row("mean", ops.mean, reduction(), (reductions.Mean,), mean_composed),
    Row("var", ops.var, reduction(correction=True), (reductions.Var,), var_composed),
    Row("max", ops.max, reduction(distinct), (reductions.Max,)),
    Row("min", ops.min, reduction(distinct), (reductions.Min,), lambda x, **how: -((-x).max(**how)), torch=minimum),
    Row("reshape", lambda x, shape: ops.reshape(x, shape), reshapes(), (Reshape,)),
    Row("transpose", lambda x, axes: ops.transpose(x, axes), transposes(), (Transpose,)),
    Row("getitem", ops.getitem, indexings(), (GetItem,)),
    Row("concatenate", lambda *x, axis: ops.concatenate(x, axis), pieces(), (Concatenate,)),
    Row("stack", lambda *x, axis: ops.stack(x, axis), pieces(equal=True), (Concatenate,), stack_composed),
    Row("split", ops.split, splits(), (Split,), split_composed),
    Row("where", ops.where, choices(), (Where,), where_composed, takes_nan=False),
    Row("matmul", ops.matmul, products(), (MatMul,), matmul_composed),
    Row("linear", ops.linear, linears(), (Linear,), linear_composed),
]


@st.composite
def product_arguments(draw: Any) -> Example:
    """Enough rows and columns for the compiled body, whole and broken strips and panels, sums in one piece and two."""
    M, N = draw(st.sampled_from([32, 33, 42, 100])), draw(st.sampled_from([32, 33, 64, 127]))
    K = draw(st.sampled_from([1, 2, 15, 64, 321, 641]))
    layout = draw(st.sampled_from(["C", "C", "F", "strided"]))  # of what is written: the body takes the first
    out = Input((M, N), layout, draw(seeds), normal)
    return Example((draw(inputs((M, K))), draw(inputs((K, N))), out, draw(st.booleans())))


def no_product_of(dtype: Any) -> bool:
    """Whether the compiled product leaves matrices of this dtype to the BLAS: float64, and float32 without AVX2."""
    body = native_body("matmul_into")
    a = np.ones((64, 64), dtype)
    return body is None or body(a, a, np.empty_like(a), False) is NotImplemented


KERNEL_ROWS = [
    KernelRow(
        "matmul_into",
        mostly_contiguous(product_arguments()),
        writes=(2,),
        declines=no_product_of,
        large=[
            sizes.product(500, 700, 300, "C", False),  # B is packed for all
            sizes.product(100, 1300, 300, "C", True),  # parts of B
            sizes.product(100, 1300, 300, "F", False),  # and A too
        ],
    ),
    KernelRow(
        "add_bias",
        mostly_contiguous(rows_and_bias()),
        writes=(0,),
        large=sizes.with_vector(1, sizes.ROWS, sizes.FEW_LONG_ROWS),
        wide=mostly_contiguous(rows_and_bias(N=tall, C=wide)),
    ),
    KernelRow(
        "rounded",
        roundings(),
        declines=lambda dtype: dtype != np.float32,
        wide=roundings(C=st.sampled_from([31, 64, 1030])),
    ),
    KernelRow(
        "column_sum",
        matrices(),
        large=sizes.rows(1, sizes.ROWS, sizes.FEW_LONG_ROWS, (129, 2100)),
        wide=matrices(C=st.sampled_from([31, 64, 130, 260])),
    ),
]
