"""Operations that random graphs are made of, each with the conditions under which differences can check it.

Others have their proposal in their row: `graph=`, in `tests/ops/cases/`. An `Operation` proposes operands and options
for one step of a graph (None where nothing suits) and runs it. Values stay away from kinks (relu at 0, ties in max) and
poles, so that differences of the result are its derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinygpt as tg
from tinygpt import ops
from tinygpt.optim import regularization
from tinygpt.random import Generator
from tinygpt.tensor import Tensor

FAR = 0.05  # from kinks


@dataclass(frozen=True)
class Operation:
    """propose(builder) -> (operands, options) or None; run(*tensors, **options) -> a tensor or a tuple of them.

    reads: for each output the operands that it depends on, where these are not all of them.
    """

    name: str
    propose: Callable[[Any], Any]
    run: Callable[..., Any]
    reads: Callable[..., tuple[tuple[int, ...], ...]] | None = None


class Both(tg.Function):
    """Two operations in one node, of a user's making: each output depends on one input."""

    def forward(self, x: Any, w: Any) -> Any:
        self.save(x)
        return [x * x, w * 3.0]

    def backward(self, dsquare: Any, dtriple: Any) -> Any:
        (x,) = self.saved
        dx = None if dsquare is None else 2.0 * x * dsquare
        return [dx, None if dtriple is None else 3.0 * dtriple]


# Conditions on values ------------------------------------------------------------------------------


def small(x: np.ndarray) -> bool:
    return not x.size or float(np.abs(x).max()) < 3


def positive(x: np.ndarray) -> bool:
    return not x.size or (float(x.min()) > 0.3 and float(x.max()) < 4)


def off_zero(x: np.ndarray) -> bool:
    return not x.size or float(np.abs(x).min()) > FAR


def divisor(x: np.ndarray) -> bool:
    return not x.size or float(np.abs(x).min()) > 0.3


def spread(x: np.ndarray) -> bool:
    """Rows that layer normalisation does not blow up."""
    return x.ndim > 0 and x.shape[-1] > 1 and (not x.size or float(x.std(axis=-1).min()) > 0.3)


def rows(x: np.ndarray) -> bool:
    return x.ndim > 0 and x.shape[-1] > 0


def full_rows(x: np.ndarray) -> bool:
    return rows(x) and x.size > 0


# Proposals -----------------------------------------------------------------------------------------


def one(condition: Any = lambda x: True, kind: str = "normal") -> Any:
    return lambda b: ((b.value(condition, kind),), {})


def two(condition: Any = lambda x: True, kind: str = "normal") -> Any:
    def propose(b: Any) -> Any:
        a = b.value()
        return (a, b.partner(a, condition, kind)), {}

    return propose


def powers(b: Any) -> Any:
    a = b.value(positive, "positive")
    how = b.one_of(("number", "base", "tensor"))
    if how == "tensor":
        return (a, b.partner(a, small)), {}
    return (a,), {how: b.one_of((0, 1, 2, 3, -1, 0.5, 1.5))}


def run_pow(a: Tensor, b: Any = None, number: Any = None, base: Any = None) -> Tensor:
    return a**b if b is not None else a**number if number is not None else (abs(base) + 0.5) ** a


def reduction(least: int) -> Any:
    def propose(b: Any) -> Any:
        a = b.value()
        axis = b.axes(b.values[a].ndim)
        axes = tuple(range(b.values[a].ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        count = math.prod(b.values[a].shape[i] for i in axes)
        return ((a,), {"axis": axis, "keepdims": b.chance(2)}) if count >= least else None

    return propose


def extremum(b: Any, sign: int = 1) -> Any:
    """Operands of max, or of min with sign=-1: no two that compete are close."""
    proposed = reduction(1)(b)
    if proposed is None:
        return None
    (a,), options = proposed
    x, axis = sign * b.values[a], options["axis"]
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(i % x.ndim for i in axes)
    flat = np.moveaxis(x, axes, range(len(axes))).reshape(math.prod(x.shape[i] for i in axes), -1)
    top = np.sort(flat, axis=0)[-2:]
    return proposed if len(top) < 2 or not top.size or float((top[1] - top[0]).min()) > FAR else None


def reshapes(b: Any) -> Any:
    a = b.value()
    size = b.values[a].shape
    shape = list(b.shuffled(size)) if b.chance(2) else [math.prod(size)]
    if b.chance(2):
        shape.insert(b.integer(0, len(shape)), 1)
    return (a,), {"shape": tuple(shape)}


def transposes(b: Any) -> Any:
    a = b.value()
    return (a,), {"axes": tuple(b.shuffled(range(b.values[a].ndim)))}


def keys(b: Any) -> Any:
    a = b.value(lambda x: x.ndim > 0 and 0 not in x.shape)
    key: list[Any] = []
    several = b.integer(1, 3)
    shape = b.values[a].shape
    if b.chance(5):
        return (a,), {"key": b.rng().random(shape) < 0.6}
    for n in shape[: b.integer(0, len(shape))]:
        kind = b.one_of(("integer", "slice", "array"))
        if kind == "integer":
            key.append(b.integer(-n, n - 1))
        elif kind == "slice":
            key.append(slice(b.integer(0, n - 1), None, b.one_of((1, 2))) if b.chance(2) else slice(None, None, -1))
        else:
            key.append(b.rng().integers(-n, n, several))
    if b.chance(3):
        key.insert(b.integer(0, len(key)), None)
    return (a,), {"key": tuple(key)}


def pieces(b: Any) -> Any:
    a = b.value(lambda x: x.ndim > 0)
    axis = b.integer(0, b.values[a].ndim - 1)
    shape = b.values[a].shape
    others = [b.like((*shape[:axis], b.integer(0, 3), *shape[axis + 1 :])) for _ in range(b.integer(0, 2))]
    return (a, *others, *([a] if b.chance(3) else [])), {"axis": axis}


def stacks(b: Any) -> Any:
    a = b.value()
    return (a, b.like(b.values[a].shape)), {"axis": b.integer(0, b.values[a].ndim)}


def splits(b: Any) -> Any:
    a = b.value(lambda x: x.ndim > 0)
    axis = b.integer(0, b.values[a].ndim - 1)
    total = b.values[a].shape[axis]
    first = b.integer(0, total)
    return (a,), {"sizes": [first, total - first], "axis": axis}


def choices(b: Any) -> Any:
    a = b.value()
    c = b.partner(a)
    try:
        shape = np.broadcast_shapes(b.values[a].shape, b.values[c].shape)
    except ValueError:
        return None
    if b.chance(2) and off_zero(b.values[a]):
        return (a, c), {"condition": None}  # a > 0
    return (a, c), {"condition": b.rng().random(shape[b.integer(0, len(shape)) :]) < 0.5}


def run_where(a: Tensor, c: Tensor, condition: Any) -> Tensor:
    return ops.where(a > 0 if condition is None else condition, a, c)


def along(b: Any) -> Any:
    a = b.value(rows)
    return (a,), {"axis": b.integer(-b.values[a].ndim, b.values[a].ndim - 1)}


def products(b: Any) -> Any:
    a = b.value(rows)
    shape = b.values[a].shape
    if len(shape) > 1 and shape[0] > 0 and b.chance(6):
        return (a, b.like(shape[-2:-1])), {"swap": True}
    if len(shape) == 2 and b.chance(5):
        return (a, a), {"turn": True}
    columns = b.one_of(((), (2,), (3,)))
    batch = shape[:-2] if b.chance(3) and columns else ()
    return (a, b.like((*batch, shape[-1], *columns))), {}


def run_matmul(a: Tensor, b: Tensor, swap: bool = False, turn: bool = False) -> Tensor:
    return a @ b.T if turn else b @ a if swap else a @ b


def linears(b: Any) -> Any:
    x = b.value(rows)
    out = b.integer(1, 4)
    weight = b.like((b.values[x].shape[-1], out))
    return (x, weight, *([b.like((out,))] if b.chance(2) else [])), {}


def normalised(b: Any) -> Any:
    x = b.value(spread)
    C = b.values[x].shape[-1]
    return (x, b.like((C,)), *([b.like((C,))] if b.chance(2) else [])), {}


def bias_gelus(b: Any) -> Any:
    x = b.value(rows)
    return (x, b.like(b.values[x].shape[-1:])), {}


def residuals(b: Any) -> Any:
    x = b.value(spread)
    shape = b.values[x].shape
    biases = (b.chance(2), b.chance(2))
    vectors = [b.like(shape[-1:]) for present in (True, *biases) if present]
    return (x, b.like(shape), *vectors), {"biases": biases, "p": b.one_of((0.0, 0.0, 0.3)), "seed": b.integer(0, 999)}


def run_residual(r: Tensor, x: Tensor, w: Tensor, *given: Tensor, biases: Any, p: float, seed: int) -> Any:
    rest = iter(given)
    bias, x_bias = (next(rest) if present else None for present in biases)
    return ops.residual_layer_norm(r, x, w, bias, x_bias, dropout_p=p, generator=Generator(seed))


def residual_reads(count: int, biases: Any, **_: Any) -> tuple[tuple[int, ...], ...]:
    return (0, 1, *([count - 1] if biases[1] else [])), tuple(range(count))


def queries(b: Any) -> Any:
    x = b.value(lambda v: 0 < v.size <= 60)
    size = b.values[x].size
    D = b.one_of([d for d in (1, 2, 3, 4) if size % d == 0])
    q = b.step("reshape", (x,), {"shape": (1, 1, size // D, D)})
    if q is None:
        return None
    other = (1, 1, b.integer(1, 5), D)
    return (q[0], b.like(other), b.like(other)), {"is_causal": b.chance(2), "dropout_p": 0.0}


def packed(b: Any) -> Any:
    x = b.value(lambda v: full_rows(v) and v.ndim > 1 and v.size <= 120)
    heads, D = b.integer(1, 2), b.integer(1, 3)
    qkv = b.step("linear", (x, b.like((b.values[x].shape[-1], 3 * heads * D))), {})
    if qkv is None:
        return None
    shaped = b.step("reshape", qkv, {"shape": (-1, b.values[x].shape[-2], 3 * heads * D)})
    return None if shaped is None else (shaped, {"n_head": heads, "is_causal": b.chance(2)})


def dropped(b: Any) -> Any:
    return (b.value(),), {"p": b.one_of((0.0, 0.3, 0.8)), "seed": b.integer(0, 999)}


def tables(b: Any) -> Any:
    table = b.value(lambda x: x.ndim == 2 and 0 not in x.shape, shape=(b.integer(1, 5), b.integer(1, 4)))
    ids = b.rng().integers(0, b.values[table].shape[0], b.one_of([(), (3,), (2, 3), (0,), (7,)]))
    return (table,), {"ids": ids}


def targets(b: Any, shape: tuple[int, ...], V: int) -> np.ndarray:
    drawn = b.rng().integers(0, V, shape)
    drawn[b.rng().random(shape) < 0.3] = -100
    drawn.reshape(-1)[0] = V - 1
    return drawn


def losses(b: Any) -> Any:
    x = b.value(lambda v: full_rows(v) and v.ndim > 1)
    return (x,), {"targets": targets(b, b.values[x].shape[:-1], b.values[x].shape[-1])}


def linear_losses(b: Any) -> Any:
    x = b.value(lambda v: full_rows(v) and v.ndim > 1)
    V = b.integer(1, 5)
    return (x, b.like((V, b.values[x].shape[-1]))), {"targets": targets(b, b.values[x].shape[:-1], V)}


def fractions(b: Any) -> Any:
    x = b.value(lambda v: v.size > 0)
    return (x,), {"targets": np.asarray(b.rng().random(b.values[x].shape))}


def penalties(condition: Any) -> Any:
    return lambda b: ((b.value(condition), *([b.value(condition)] if b.chance(2) else [])), {"strength": 0.3})


def run_no_grad(x: Tensor) -> Tensor:
    with tg.no_grad():
        return x * 2.0


def nothing(count: int, **_: Any) -> tuple[tuple[int, ...], ...]:
    return ((),)


def there_and_back(x: Tensor) -> Tensor:
    return ops.cast(ops.cast(x, "float64"), x.dtype)


OPERATIONS = [
    Operation("add", two(), ops.add),
    Operation("sub", two(), ops.sub),
    Operation("mul", two(), ops.mul),
    Operation("div", two(divisor, "away"), ops.div),
    Operation("affine", one(), lambda x: 1.5 - 2.0 * x / 3.0 + 0.5),
    Operation("neg", one(), ops.neg),
    Operation("pow", powers, run_pow),
    Operation("exp", one(small), ops.exp),
    Operation("log", one(positive, "positive"), ops.log),
    Operation("sqrt", one(positive, "positive"), ops.sqrt),
    Operation("tanh", one(), ops.tanh),
    Operation("sigmoid", one(), ops.sigmoid),
    Operation("relu", one(off_zero, "away"), ops.relu),
    Operation("erf", one(), ops.erf),
    Operation("gelu", lambda b: ((b.value(),), {"approximate": b.one_of(("tanh", "none"))}), ops.gelu),
    Operation("sum", reduction(0), ops.sum),
    Operation("mean", reduction(1), ops.mean),
    Operation("var", reduction(2), ops.var),
    Operation("max", extremum, ops.max),
    Operation("min", lambda b: extremum(b, -1), ops.min),
    Operation("abs", one(off_zero, "away"), ops.abs),
    Operation("reshape", reshapes, lambda x, shape: x.reshape(shape)),
    Operation("transpose", transposes, lambda x, axes: ops.transpose(x, axes)),
    Operation("getitem", keys, lambda x, key: x[key]),
    Operation("concatenate", pieces, lambda *x, axis: ops.concatenate(x, axis)),
    Operation("stack", stacks, lambda *x, axis: ops.stack(x, axis)),
    Operation("split", splits, lambda x, sizes, axis: ops.split(x, sizes, axis)),
    Operation("where", choices, run_where),
    Operation("softmax", along, ops.softmax),
    Operation("log_softmax", along, ops.log_softmax),
    Operation("matmul", products, run_matmul),
    Operation("linear", linears, ops.linear),
    Operation("layer_norm", normalised, ops.layer_norm),
    Operation("bias_gelu", bias_gelus, ops.bias_gelu),
    Operation("residual_layer_norm", residuals, run_residual, residual_reads),
    Operation("attention", queries, ops.attention),
    Operation("qkv_attention", packed, ops.qkv_attention),
    Operation("dropout", dropped, lambda x, p, seed: ops.dropout(x, p, generator=Generator(seed))),
    Operation("embedding", tables, ops.embedding),
    Operation("cross_entropy", losses, ops.cross_entropy),
    Operation("linear_cross_entropy", linear_losses, ops.linear_cross_entropy),
    Operation("binary_cross_entropy", fractions, ops.binary_cross_entropy),
    Operation("cast", one(), there_and_back),
    Operation("in_dtype_of", two(), lambda x, p: ops.in_dtype_of(x, p), lambda count, **_: ((1,),)),
    Operation("l1", penalties(off_zero), lambda *x, strength: regularization.l1(x, strength)),
    Operation("l2", penalties(lambda x: True), lambda *x, strength: regularization.l2(x, strength)),
    Operation("detach", one(), Tensor.detach, nothing),
    Operation("no_grad", one(), run_no_grad, nothing),
    Operation("both", lambda b: ((b.value(), b.value()), {}), Both.apply, lambda count, **_: ((0,), (1,))),
]
