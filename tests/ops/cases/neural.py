"""The rows of the neural-network operations; see `__init__.py`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st

from tests.ops.cases import large as sizes
from tests.ops.cases.wide import (
    logits_and_targets as wide_logits_and_targets,
)
from tests.ops.cases.wide import (
    many_rows,
    no_equal_rows,
    of_all_sizes,
    pieces,
    rows_of,
    steep,
    tall,
    wide,
)
from tests.ops.drawing import (
    IGNORE,
    Example,
    Input,
    KernelRow,
    Row,
    fractions,
    inputs,
    integers_below,
    leading,
    mostly_contiguous,
    positive,
    reduced,
    seeds,
    small,
    targets_below,
)
from tinygpt import ops
from tinygpt.ops import _matmul
from tinygpt.ops.bias_gelu import BiasGelu, bias_gelu_composed
from tinygpt.ops.binary_cross_entropy import BinaryCrossEntropy, binary_cross_entropy_composed
from tinygpt.ops.cast import Cast
from tinygpt.ops.cross_entropy import CrossEntropy, cross_entropy_composed
from tinygpt.ops.dropout import Dropout, dropout_composed
from tinygpt.ops.embedding import Embedding, embedding_composed
from tinygpt.ops.erf import Erf
from tinygpt.ops.gelu import Gelu, GeluErf, gelu_composed
from tinygpt.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy_composed
from tinygpt.ops.residual_layer_norm import ResidualLayerNorm, residual_layer_norm_composed
from tinygpt.ops.softmax import LogSoftmax, Softmax, log_softmax_composed, softmax_composed
from tinygpt.random import Generator
from tinygpt.tensor import Tensor

probabilities = st.sampled_from([0.1, 0.5, 0.9])
# One in eight is empty, and neither the first nor the last, which hypothesis draws most often: half of a kernel's
# examples must come to its fast body.
few = st.sampled_from([1, 5, 40, 0, 1, 5, 40, 5])
streams = st.sampled_from([0, 1, 2**32 + 5])
keys = st.tuples(st.integers(0, 2**64 - 1), streams)
writable = st.sampled_from(["C", "F", "permuted", "strided", "negative"])


# Examples -----------------------------------------------------------------------------------------


@st.composite
def row_shapes(draw: Any, zero: bool = True) -> tuple[int, ...]:
    """(..., C) with at least one axis."""
    return (*draw(st.lists(leading if zero else small, max_size=2)), draw(reduced))


@st.composite
def any_array(draw: Any, **options: Any) -> Example:
    shape = draw(st.one_of(row_shapes(), st.just(())))
    return Example((draw(inputs(shape)),), options)


@st.composite
def along_an_axis(draw: Any) -> Example:
    shape = draw(row_shapes())
    fitting = [axis for axis, size in enumerate(shape) if size]  # there is no maximum of nothing
    axis = draw(st.sampled_from(fitting))
    return Example((draw(inputs(shape)),), {"axis": axis - draw(st.sampled_from([0, len(shape)]))})


@st.composite
def with_bias(draw: Any) -> Example:
    shape = draw(row_shapes())
    return Example((draw(inputs(shape)), draw(inputs(shape[-1:]))))


@st.composite
def logits_and_targets(draw: Any) -> Example:
    shape = draw(row_shapes(zero=False))
    return Example((draw(inputs(shape)), draw(inputs(shape[:-1], targets_below(shape[-1])))))


@st.composite
def head_and_targets(draw: Any) -> Example:
    shape, V = draw(row_shapes(zero=False)), draw(reduced)
    arrays = (draw(inputs(shape)), draw(inputs((V, shape[-1]))), draw(inputs(shape[:-1], targets_below(V))))
    return Example(arrays, {"block_bytes": draw(st.sampled_from([1, 300, 2**25])), "slice_bytes": 64})


@st.composite
def logits_and_fractions(draw: Any) -> Example:
    shape = draw(st.one_of(row_shapes(zero=False), st.just(())))
    return Example((draw(inputs(shape)),), {"targets": draw(inputs(shape, fractions)).make()})


@st.composite
def table_and_ids(draw: Any) -> Example:
    V, C = draw(reduced), draw(reduced)
    ids = draw(st.lists(leading, max_size=2))
    return Example((draw(inputs((V, C))), draw(inputs(ids, integers_below(V)))))


@st.composite
def dropped(draw: Any) -> Example:
    return Example((draw(inputs(draw(row_shapes()))),), {"p": draw(probabilities), "key": draw(keys)})


@st.composite
def residuals(draw: Any) -> Example:
    shape = draw(row_shapes())
    has_biases = (draw(st.booleans()), draw(st.booleans()))
    vectors = [draw(inputs(shape[-1:])) for _ in range(1 + sum(has_biases))]
    options = {"has_biases": has_biases, "p": draw(st.sampled_from([0.0, 0.5])), "key": draw(keys)}
    return Example((draw(inputs(shape)), draw(inputs(shape)), *vectors), options)


# The operations with their random key as an option, and the oracles called in the same way ----------


def there_and_back(x: Tensor) -> Tensor:
    """Through float64 and back: exact, so differences can be taken. In 16 bits: tests/cuda/test_mixed_precision.py."""
    return Cast.apply(Cast.apply(x, dtype=np.dtype(np.float64)), dtype=x.dtype)


def dropout(x: Tensor, p: float, key: tuple[int, int]) -> Tensor:
    return ops.dropout(x, p, generator=Generator(*key))


def residual_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, *vectors: Tensor, has_biases: Any, p: float, key: tuple[int, int]
) -> Any:
    given = iter(vectors)
    bias, x_bias = (next(given) if present else None for present in has_biases)
    return ops.residual_layer_norm(residual, x, weight, bias, x_bias, dropout_p=p, generator=Generator(*key))


def residual_layer_norm_oracle(
    residual: Tensor, x: Tensor, weight: Tensor, *vectors: Tensor, has_biases: Any, p: float, key: tuple[int, int]
) -> Any:
    given = iter(vectors)
    bias, x_bias = (next(given) if present else None for present in has_biases)
    return residual_layer_norm_composed(residual, x, weight, bias, x_bias, 1e-5, p, *key)


def one_of(function: Any, output: int) -> Any:
    """One of several results: the gradients of the others are None."""
    return lambda *tensors, **options: function(*tensors, **options)[output]


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, block_bytes: int, slice_bytes: int) -> Tensor:
    """The operation with blocks so small that there are several, and that they do not divide the rows."""
    module = importlib.import_module("tinygpt.ops.linear_cross_entropy")
    with patch.object(module, "BLOCK_BYTES", block_bytes), patch.object(_matmul, "SLICE_BYTES", slice_bytes):
        return ops.linear_cross_entropy(x, weight, targets)


def on_arrays(composed: Callable[..., Any]) -> Callable[..., Any]:
    """An oracle whose last argument is an array of integers, called with a tensor of them."""
    return lambda *arguments, **sizes: composed(*arguments[:-1], arguments[-1].data)


# Arguments of the kernels ---------------------------------------------------------------------------


@st.composite
def kernel_rows(draw: Any, *more: Any, count: int = 1, N: Any = leading, C: Any = reduced) -> Example:
    """`count` arrays (N, C), then what each of `more` draws for C."""
    shape = (draw(N), draw(C))
    return Example((*[draw(inputs(shape)) for _ in range(count)], *[draw(part(shape[1])) for part in more]))


def vector(C: int) -> Any:
    return inputs((C,))


@st.composite
def cross_entropy_arguments(draw: Any, backward: bool = False, V: Any = reduced) -> Example:
    N, V = draw(leading), draw(V)
    logits, targets = draw(inputs((N, V))), draw(inputs((N,), targets_below(V)))
    if backward:
        return Example((draw(inputs((N,))), logits, targets, draw(inputs((N, 2), positive)), IGNORE))
    return Example((logits, targets, IGNORE))


@st.composite
def cross_entropy_inplace_arguments(draw: Any, V: Any = reduced) -> Example:
    N, V = draw(leading), draw(V)
    logits = Input((N, V), draw(writable), draw(seeds))
    return Example((logits, draw(inputs((N,), targets_below(V))), IGNORE, draw(st.sampled_from([1.0, 0.125]))))


@st.composite
def binary_cross_entropy_arguments(draw: Any, backward: bool = False) -> Example:
    shape = draw(row_shapes())
    upstream = [draw(inputs(shape))] if backward else []
    return Example((*upstream, draw(inputs(shape)), draw(inputs(shape, fractions))))


@st.composite
def embedding_arguments(draw: Any, backward: bool = False, V: Any = reduced, C: Any = reduced, N: Any = few) -> Example:
    V, C, N = draw(V), draw(C), draw(N)
    ids = draw(inputs((N,), integers_below(V)))
    if not backward:
        return Example((draw(inputs((V, C))), ids))
    return Example((draw(inputs((N, C))), ids, Input((V, C), draw(writable), draw(seeds))))


@st.composite
def dropout_arguments(draw: Any, N: Any = leading, C: Any = reduced) -> Example:
    return Example((draw(inputs((draw(N), draw(C)))), draw(probabilities), *draw(keys)))


@st.composite
def residual_arguments(draw: Any, backward: bool = False, N: Any = leading, C: Any = reduced) -> Example:
    N, C = draw(N), draw(C)
    rows, row = inputs((N, C)), inputs((C,))
    dropping = (draw(st.sampled_from([0.0, 0.5])), *draw(keys))
    if backward:
        statistics = draw(inputs((N, 2))), draw(inputs((N,), positive))
        flags = draw(st.booleans()), draw(st.booleans())
        return Example((draw(rows), draw(rows), draw(rows), draw(row), *statistics, *dropping, *flags))
    maybe = st.one_of(st.none(), row)
    return Example((draw(rows), draw(rows), draw(maybe), draw(row), draw(maybe), 1e-5, *dropping))


# The tables ---------------------------------------------------------------------------------------

ROWS = [
    Row("cast", there_and_back, any_array(), (Cast,), lambda x: 1.0 * x),
    Row("erf", ops.erf, any_array(), (Erf,)),
    Row("gelu", ops.gelu, any_array(), (Gelu,), gelu_composed),
    Row("gelu with erf", ops.gelu, any_array(approximate="none"), (GeluErf,), gelu_composed),
    Row("bias_gelu", ops.bias_gelu, with_bias(), (BiasGelu,), bias_gelu_composed),
    Row("softmax", ops.softmax, along_an_axis(), (Softmax,), softmax_composed),
    Row("log_softmax", ops.log_softmax, along_an_axis(), (LogSoftmax,), log_softmax_composed),
    Row("cross_entropy", ops.cross_entropy, logits_and_targets(), (CrossEntropy,), on_arrays(cross_entropy_composed)),
    Row(
        "linear_cross_entropy",
        linear_cross_entropy,
        head_and_targets(),
        (LinearCrossEntropy,),
        on_arrays(linear_cross_entropy_composed),
    ),
    Row(
        "binary_cross_entropy",
        ops.binary_cross_entropy,
        logits_and_fractions(),
        (BinaryCrossEntropy,),
        binary_cross_entropy_composed,
    ),
    Row("embedding", ops.embedding, table_and_ids(), (Embedding,), on_arrays(embedding_composed)),
    Row("dropout", dropout, dropped(), (Dropout,), lambda x, p, key: dropout_composed(x, p, *key)),
    Row("residual_layer_norm", residual_layer_norm, residuals(), (ResidualLayerNorm,), residual_layer_norm_oracle),
    *(
        Row(
            f"residual_layer_norm, {name} alone",
            one_of(residual_layer_norm, output),
            residuals(),
            (ResidualLayerNorm,),
            one_of(residual_layer_norm_oracle, output),
        )
        for output, name in enumerate(("sum", "normalised"))
    ),
]

KERNEL_ROWS = [
    KernelRow(
        "gelu_forward", kernel_rows(), large=sizes.spans(1), wide=st.one_of(kernel_rows(C=wide), rows_of(of_all_sizes))
    ),
    KernelRow(
        "gelu_backward",
        kernel_rows(count=2),
        large=sizes.spans(2),
        wide=st.one_of(kernel_rows(count=2, C=wide), rows_of(of_all_sizes, 2)),
    ),
    KernelRow(
        "gelu_erf_forward",
        kernel_rows(),
        large=sizes.spans(1),
        wide=st.one_of(kernel_rows(C=wide), rows_of(of_all_sizes)),
    ),
    KernelRow(
        "gelu_erf_backward",
        kernel_rows(count=2),
        large=sizes.spans(2),
        wide=st.one_of(kernel_rows(count=2, C=wide), rows_of(of_all_sizes, 2)),
    ),
    KernelRow(
        "bias_gelu_forward",
        kernel_rows(vector),
        large=sizes.with_vector(1, sizes.ROWS, sizes.FEW_LONG_ROWS),
        wide=kernel_rows(vector, N=tall, C=wide),
    ),
    KernelRow(
        "bias_gelu_backward",
        kernel_rows(vector, count=2),
        large=sizes.with_vector(2, sizes.ROWS, sizes.FEW_LONG_ROWS),
        wide=kernel_rows(vector, count=2, N=tall, C=wide),
    ),
    *(
        row
        for name in ("softmax", "log_softmax")
        for row in (
            KernelRow(
                f"{name}_forward",
                kernel_rows(),
                large=sizes.rows(1, sizes.ROWS, sizes.FEW_LONG_ROWS),
                wide=st.one_of(kernel_rows(C=wide), rows_of(steep)),
            ),
            KernelRow(
                f"{name}_backward",
                kernel_rows(count=2),
                large=sizes.rows(2, sizes.ROWS, sizes.FEW_LONG_ROWS),
                wide=kernel_rows(count=2, C=wide),
            ),
        )
    ),
    KernelRow(
        "cross_entropy_forward",
        cross_entropy_arguments(),
        large=sizes.cross_entropies("forward"),
        wide=st.one_of(cross_entropy_arguments(V=wide), rows_of(steep, targets=True)),
    ),
    KernelRow(
        "cross_entropy_backward",
        cross_entropy_arguments(backward=True),
        large=sizes.cross_entropies("backward"),
        wide=cross_entropy_arguments(backward=True, V=wide),
    ),
    KernelRow(
        "cross_entropy_inplace",
        mostly_contiguous(cross_entropy_inplace_arguments()),
        writes=(0,),
        large=sizes.cross_entropies("inplace"),
        wide=mostly_contiguous(cross_entropy_inplace_arguments(V=wide)),
    ),
    KernelRow("binary_cross_entropy_forward", binary_cross_entropy_arguments(), wide=wide_logits_and_targets(1)),
    KernelRow(
        "binary_cross_entropy_backward", binary_cross_entropy_arguments(backward=True), wide=wide_logits_and_targets(2)
    ),
    KernelRow(
        "embedding_forward",
        embedding_arguments(),
        large=[sizes.embedding(False, 50, 300, 65), sizes.embedding(False, 200, 10, 1500)],
        wide=embedding_arguments(C=wide),
    ),
    KernelRow(
        "embedding_backward",
        mostly_contiguous(embedding_arguments(backward=True)),
        writes=(2,),
        # Ids in the order of their counts, and sorted where there are many more of them than positions.
        large=[sizes.embedding(True, 50, 300, 200), sizes.embedding(True, 200, 10, 130)],
        wide=mostly_contiguous(embedding_arguments(True, V=st.sampled_from([1, 2, 3, 33]), C=wide, N=pieces)),
    ),
    KernelRow(
        "dropout_apply",
        dropout_arguments(),
        large=[Example((Input(shape), 0.5, *sizes.KEY)) for shape in (sizes.ROWS, sizes.FEW_LONG_ROWS)],
        wide=st.one_of(dropout_arguments(C=wide), dropout_arguments(**many_rows)),
    ),
    KernelRow(
        "residual_layer_norm_forward",
        residual_arguments(),
        large=[sizes.residual(False, *sizes.ROWS, 0.5), sizes.residual(False, 6, 1500, 0.0)],
        wide=residual_arguments(C=wide),
    ),
    KernelRow(
        "residual_layer_norm_backward",
        residual_arguments(backward=True),
        large=[sizes.residual(True, *sizes.ROWS, 0.5), sizes.residual(True, *sizes.FEW_LONG_ROWS, 0.0)],
        wide=st.one_of(
            residual_arguments(True, N=tall, C=wide), residual_arguments(True, **many_rows).filter(no_equal_rows)
        ),
    ),
]
