"""What the neural-network operations refuse, and that the sentence says what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.ops.cases import ROWS
from tinygpt import ops
from tinygpt.errors import DtypeError, RangeError, ShapeError, UsageError
from tinygpt.random import default_generator
from tinygpt.tensor import Tensor


def t(*shape: int, dtype: Any = np.float32) -> Tensor:
    return Tensor(np.zeros(shape, dtype))


def double(*shape: int) -> Tensor:
    return t(*shape, dtype=np.float64)


def ids(*values: int) -> np.ndarray:
    return np.array(values)


whole = t(2, 3, dtype=np.int64)

CASES: list[tuple[str, Callable[[], Any], type[UsageError], tuple[str, ...]]] = [
    # operation and what is wrong, the call, the error, words that the sentence must hold
    ("gelu of integers", lambda: ops.gelu(whole), DtypeError, ("gelu", "float32 or float64", "int64")),
    ("gelu of an array", lambda: ops.gelu(np.zeros(2)), DtypeError, ("gelu: x", "ndarray", "tinygpt.tensor")),  # type: ignore[arg-type]
    ("linear of nothing", lambda: ops.linear(t(2, 3), None), DtypeError, ("linear: weight", "NoneType")),  # type: ignore[arg-type]
    ("layer_norm bias", lambda: ops.layer_norm(t(2, 3), t(3), [0.0] * 3), DtypeError, ("layer_norm: bias", "list")),  # type: ignore[arg-type]
    ("layer_norm eps", lambda: ops.layer_norm(t(2, 3), t(3), eps=-1.0), UsageError, ("layer_norm: eps", "-1.0")),
    (
        "residual_layer_norm eps",
        lambda: ops.residual_layer_norm(t(2, 3), t(2, 3), t(3), eps="a"),
        DtypeError,
        ("eps", "'a'"),
    ),  # type: ignore[arg-type]
    ("var correction", lambda: ops.var(t(2, 3), correction=None), DtypeError, ("var: correction", "None")),  # type: ignore[arg-type]
    ("ignore_index", lambda: ops.cross_entropy(t(2, 3), ids(0, 1), 2**70), RangeError, ("ignore_index", "64-bit")),
    ("gelu form", lambda: ops.gelu(t(2), "erf"), UsageError, ("gelu", "'tanh' or 'none'", "'erf'")),
    ("erf of integers", lambda: ops.erf(whole), DtypeError, ("erf", "int64")),
    ("bias_gelu shapes", lambda: ops.bias_gelu(t(2, 3), t(4)), ShapeError, ("bias_gelu", "(2, 3)", "(4,)")),
    ("bias_gelu dtypes", lambda: ops.bias_gelu(t(2, 3), double(3)), DtypeError, ("bias_gelu", "float32", "float64")),
    ("softmax of a number", lambda: ops.softmax(t()), ShapeError, ("softmax", "at least one axis")),
    ("softmax axis", lambda: ops.softmax(t(2, 3), 2), RangeError, ("softmax", "axis 2", "2 axes")),
    ("softmax axis kind", lambda: ops.softmax(t(2, 3), 1.5), DtypeError, ("softmax", "1.5")),  # type: ignore[arg-type]
    ("softmax of integers", lambda: ops.softmax(whole), DtypeError, ("softmax", "int64")),
    ("log_softmax axis", lambda: ops.log_softmax(t(2), -2), RangeError, ("log_softmax", "axis -2")),
    ("cross_entropy of integers", lambda: ops.cross_entropy(whole, ids(0, 1)), DtypeError, ("logits", "int64")),
    ("cross_entropy without classes", lambda: ops.cross_entropy(t(2, 0), ids(0, 1)), ShapeError, ("(2, 0)",)),
    ("cross_entropy of a number", lambda: ops.cross_entropy(t(), ids(0)), ShapeError, ("(..., V)", "()")),
    ("target shape", lambda: ops.cross_entropy(t(2, 3), ids(0)), ShapeError, ("(2,)", "(1,)")),
    ("target dtype", lambda: ops.cross_entropy(t(1, 3), [0.5]), DtypeError, ("targets", "integers", "float64")),
    ("bool target", lambda: ops.cross_entropy(t(1, 3), [True]), DtypeError, ("targets", "integers", "bool")),
    ("target too high", lambda: ops.cross_entropy(t(3, 3), ids(3, 7, -1)), RangeError, ("0 .. 2", "-100", "not 7")),
    ("target too low", lambda: ops.cross_entropy(t(3, 3), ids(3, -9, -1)), RangeError, ("0 .. 2", "not -9")),
    ("all ignored", lambda: ops.cross_entropy(t(2, 3), ids(-100, -100)), UsageError, ("no target is left", "all 2")),
    ("no targets", lambda: ops.cross_entropy(t(0, 3), []), UsageError, ("no target is left",)),
    ("ignore_index", lambda: ops.cross_entropy(t(1, 3), ids(0), 0.5), DtypeError, ("ignore_index", "0.5")),  # type: ignore[arg-type]
    ("head shapes", lambda: ops.linear_cross_entropy(t(2, 3), t(5, 4), ids(0, 1)), ShapeError, ("(2, 3)", "(5, 4)")),
    (
        "head dtypes",
        lambda: ops.linear_cross_entropy(t(2, 3), double(5, 3), ids(0, 1)),
        DtypeError,
        ("weight float64",),
    ),
    ("head target", lambda: ops.linear_cross_entropy(t(1, 3), t(5, 3), ids(5)), RangeError, ("0 .. 4", "not 5")),
    ("head all ignored", lambda: ops.linear_cross_entropy(t(1, 3), t(5, 3), ids(-100)), UsageError, ("all 1",)),
    ("binary shapes", lambda: ops.binary_cross_entropy(t(2), [0.0]), ShapeError, ("(2,)", "(1,)")),
    ("ragged targets", lambda: ops.binary_cross_entropy(t(2), [[0.0], [1.0, 0.0]]), ShapeError, ("targets", "length")),
    ("binary range", lambda: ops.binary_cross_entropy(t(2), [0.0, 1.5]), RangeError, ("[0, 1]", "1.5")),
    ("binary below", lambda: ops.binary_cross_entropy(t(2), [0.0, -1.0]), RangeError, ("[0, 1]", "-1.0")),
    ("binary nan", lambda: ops.binary_cross_entropy(t(2), [0.0, np.nan]), RangeError, ("[0, 1]", "nan")),
    ("binary words", lambda: ops.binary_cross_entropy(t(1), ["yes"]), DtypeError, ("targets", "<U3")),
    ("binary of integers", lambda: ops.binary_cross_entropy(whole, whole), DtypeError, ("logits", "int64")),
    ("table shape", lambda: ops.embedding(t(3), ids(0)), ShapeError, ("embedding", "(V, C)", "(3,)")),
    ("table of integers", lambda: ops.embedding(whole, ids(0)), DtypeError, ("weight", "int64")),
    ("id too high", lambda: ops.embedding(t(4, 2), ids(1, 4)), RangeError, ("0 .. 3", "4 rows", "not 4")),
    ("id negative", lambda: ops.embedding(t(4, 2), ids(-1, 3)), RangeError, ("0 .. 3", "not -1")),
    ("id dtype", lambda: ops.embedding(t(4, 2), [1.0]), DtypeError, ("ids", "integers", "float64", "astype")),
    ("ragged ids", lambda: ops.embedding(t(4, 2), [[1], [1, 2]]), ShapeError, ("embedding", "ids", "length")),
    ("dropout of 1", lambda: ops.dropout(t(2), 1.0), RangeError, ("dropout", "[0, 1)", "1.0")),
    ("dropout below 0", lambda: ops.dropout(t(2), -0.1), RangeError, ("dropout", "[0, 1)", "-0.1")),
    ("dropout of nan", lambda: ops.dropout(t(2), float("nan")), RangeError, ("dropout", "nan")),
    ("dropout of words", lambda: ops.dropout(t(2), "half"), DtypeError, ("dropout", "'half'")),  # type: ignore[arg-type]
    ("dropout of integers", lambda: ops.dropout(whole, 0.5), DtypeError, ("dropout", "int64")),
    ("generator", lambda: ops.dropout(t(2), 0.5, generator=7), UsageError, ("Generator", "int")),  # type: ignore[arg-type]
    ("attention axes", lambda: ops.attention(t(2, 3), t(2, 3), t(2, 3)), ShapeError, ("(B, H, Tq, D)", "(2, 3)")),
    (
        "attention heads",
        lambda: ops.attention(t(1, 2, 3, 4), t(1, 3, 3, 4), t(1, 3, 3, 4)),
        ShapeError,
        ("(1, 2, 3, 4)", "(1, 3, 3, 4)"),
    ),
    (
        "attention without keys",
        lambda: ops.attention(t(1, 2, 3, 4), t(1, 2, 0, 4), t(1, 2, 0, 4)),
        ShapeError,
        ("Tk and D >= 1", "(1, 2, 0, 4)"),
    ),
    (
        "attention dtypes",
        lambda: ops.attention(t(1, 2, 3, 4), double(1, 2, 3, 4), t(1, 2, 3, 4)),
        DtypeError,
        ("q float32", "k float64"),
    ),
    (
        "attention scale",
        lambda: ops.attention(t(1, 2, 3, 4), t(1, 2, 3, 4), t(1, 2, 3, 4), scale=float("inf")),
        RangeError,
        ("scale", "inf"),
    ),
    (
        "attention dropout",
        lambda: ops.attention(t(1, 2, 3, 4), t(1, 2, 3, 4), t(1, 2, 3, 4), dropout_p=1.0),
        RangeError,
        ("attention", "dropout_p", "1.0"),
    ),
    ("heads do not divide", lambda: ops.qkv_attention(t(1, 2, 12), 3), ShapeError, ("n_head (3)", "(1, 2, 12)")),
    ("no heads", lambda: ops.qkv_attention(t(1, 2, 12), 0), ShapeError, ("n_head (0)",)),
    ("heads kind", lambda: ops.qkv_attention(t(1, 2, 12), 2.0), DtypeError, ("n_head", "2.0")),  # type: ignore[arg-type]
    ("packed axes", lambda: ops.qkv_attention(t(2, 12), 2), ShapeError, ("(B, T, 3 C)", "(2, 12)")),
    ("packed without tokens", lambda: ops.qkv_attention(t(1, 0, 12), 2), ShapeError, ("T >= 1", "(1, 0, 12)")),
    (
        "residual shapes",
        lambda: ops.residual_layer_norm(t(2, 3), t(3), t(3)),
        ShapeError,
        ("residual_layer_norm", "(2, 3)", "(3,)"),
    ),
    (
        "residual weight",
        lambda: ops.residual_layer_norm(t(2, 3), t(2, 3), t(2)),
        ShapeError,
        ("weight", "(3,)", "(2,)"),
    ),
    (
        "residual x_bias",
        lambda: ops.residual_layer_norm(t(2, 3), t(2, 3), t(3), x_bias=t(2, 3)),
        ShapeError,
        ("x_bias", "(3,)", "(2, 3)"),
    ),
    (
        "residual dtypes",
        lambda: ops.residual_layer_norm(t(2, 3), t(2, 3), t(3), double(3)),
        DtypeError,
        ("bias float64", "x float32"),
    ),
    (
        "residual dropout",
        lambda: ops.residual_layer_norm(t(2, 3), t(2, 3), t(3), dropout_p=2),
        RangeError,
        ("dropout_p", "2.0"),
    ),
]


CASES += [
    (f"{row.name} {number}", call, error, words)
    for row in ROWS
    for number, (call, error, words) in enumerate(row.refused)
]


@pytest.mark.parametrize(("call", "error", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused_in_one_sentence(call: Callable[[], Any], error: type[UsageError], words: tuple[str, ...]) -> None:
    stream = default_generator.stream
    with pytest.raises(UsageError) as caught:
        call()
    assert type(caught.value) is error
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == []
    assert default_generator.stream == stream  # what is refused uses no random numbers
