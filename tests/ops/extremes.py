"""Every operation on numbers far from zero, of tiny variance, at the ends of float32's range; and the rule for them.

The truth is what the reference gives in float64 for the same float32 numbers. A body's error is how far its worst
element is from it, in units in the last place of the largest one, and of a few draws the worst. It may be twice another
body's, and one unit more:

    err(ours) <= 2 * err(theirs) + 1

"Theirs" is the reference here, and PyTorch in `test_numerics_vs_torch.py`. Where theirs is not finite, and the
truth is, there is no rule. LayerNorm's reference computes in float64, and rounds once: the reference's error counts as
one unit at least.

Attention's scores are sums whose order is free, which differs from one matrix library to the next, and the softmax of
large ones makes much of their roundings. Each of the D partial sums of a score is rounded, so the score is off by about
sqrt(D) units: the rule allows in addition how far the truth goes when its inputs are moved by that much. And the
gradient of a score is the difference of two such sums, which may cancel: dq and dk are allowed their roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.ops.cases import ROWS as OPERATION_ROWS
from tests.ops.drawing import away_from_zero, distinct, normal, positive
from tinygpt import ops
from tinygpt.kernel import use_kernels
from tinygpt.ops.attention import scores
from tinygpt.tensor import Tensor

DRAWS = 2
EPS = float(np.finfo(np.float32).eps)
Arrays = list[np.ndarray]


class Case(NamedTuple):
    """An operation: function(*tensors), for arrays of these shapes and these values."""

    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    values: tuple[Callable[..., np.ndarray], ...] = (normal,) * 5
    of_scores: tuple[bool, float] | None = None  # attention's: is_causal and scale


N, C, V, D = 24, 70, 70, 20  # whole vectors of every level, and a rest
ROWS, ROW = (N, C), (C,)
TARGETS = np.random.default_rng(1).integers(0, V, N)
FRACTIONS = np.random.default_rng(2).random(ROWS).round(2)
QUERIES, KEYS = (1, 2, 30, D), (1, 2, 37, D)


def residual_layer_norm(residual: Any, x: Any, weight: Any, bias: Any, x_bias: Any) -> Any:
    return ops.residual_layer_norm(residual, x, weight, bias, x_bias)


CASES = [
    *(Case(name, getattr(ops, name), (ROWS, ROWS)) for name in ("add", "sub", "mul")),
    Case("div", ops.div, (ROWS, ROWS), (normal, away_from_zero)),
    Case("pow", ops.pow, (ROWS, ROWS), (positive, normal)),
    Case("square", lambda x: x**2, (ROWS,)),
    Case("to the power of -1.5", lambda x: x**-1.5, (ROWS,), (positive,)),
    *(Case(name, getattr(ops, name), (ROWS,)) for name in ("exp", "tanh", "sigmoid", "relu", "erf", "gelu")),
    *(Case(name, getattr(ops, name), (ROWS,), (positive,)) for name in ("log", "sqrt")),
    Case("gelu with erf", lambda x: ops.gelu(x, "none"), (ROWS,)),
    Case("bias_gelu", ops.bias_gelu, (ROWS, ROW)),
    Case("sum", lambda x: ops.sum(x, axis=1), (ROWS,)),
    Case("mean", lambda x: ops.mean(x, axis=1), (ROWS,)),
    Case("var", lambda x: ops.var(x, axis=1), (ROWS,)),
    Case("max", lambda x: ops.max(x, axis=1), (ROWS,), (distinct,)),
    Case("min", lambda x: ops.min(x, axis=1), (ROWS,), (distinct,)),
    Case("abs", ops.abs, (ROWS,)),
    *(Case(name, getattr(ops, name), (ROWS,)) for name in ("softmax", "log_softmax")),
    Case("cross_entropy", lambda x: ops.cross_entropy(x, TARGETS), ((N, V),)),
    Case("linear_cross_entropy", lambda x, w: ops.linear_cross_entropy(x, w, TARGETS), ((N, D), (V, D))),
    Case("binary_cross_entropy", lambda x: ops.binary_cross_entropy(x, FRACTIONS), (ROWS,)),
    Case("layer_norm", ops.layer_norm, (ROWS, ROW, ROW)),
    Case("residual_layer_norm", residual_layer_norm, (ROWS, ROWS, ROW, ROW, ROW)),
    Case("attention", ops.attention, (QUERIES, KEYS, KEYS), of_scores=(True, D**-0.5)),
    Case(
        "attention of all",
        lambda q, k, v: ops.attention(q, k, v, False, scale=0.3),
        (QUERIES, KEYS, KEYS),
        of_scores=(False, 0.3),
    ),
]
CASES += [Case(row.name, row.function, row.numerics) for row in OPERATION_ROWS if row.numerics]

# Numbers -----------------------------------------------------------------------------------------

EXTREMES: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "as they are": lambda x, rng: x,
    "at 100": lambda x, rng: 1e2 + x,
    "at 1e4": lambda x, rng: 1e4 + x,
    "at 1e6": lambda x, rng: 1e6 + x,
    "at 1000, a few units in the last place apart": lambda x, rng: 1000 + 2.0**-14 * np.round(2 * x),
    "times 1e-30": lambda x, rng: 1e-30 * x,
    "times 1e-10": lambda x, rng: 1e-10 * x,
    "times 10": lambda x, rng: 10 * x,
    "times 1e10": lambda x, rng: 1e10 * x,
    "times 1e18": lambda x, rng: 1e18 * x,
    "times 1e30": lambda x, rng: 1e30 * x,
    "up to 3e38": lambda x, rng: 3e38 * x / np.abs(x).max(),
    "of all sizes": lambda x, rng: x * 10.0 ** rng.uniform(-30, 30, x.shape),
}


def examples(case: Case) -> Iterator[tuple[str, list[Arrays]]]:
    """Draws with every extreme, of the first array alone and of the first two."""
    for name, change in EXTREMES.items():
        if case.of_scores and name == "at 1e6":
            continue  # scores are off by more than 1 there, in any body: test_numerics.py has some that are exact
        for count in range(1, min(2, len(case.shapes)) + 1):
            draws = []
            for seed in range(DRAWS):
                rng = np.random.default_rng(seed)
                arrays = [values(rng, shape) for values, shape in zip(case.values, case.shapes, strict=False)]
                changed = [change(a, rng) if i < count else a for i, a in enumerate(arrays)]
                draws.append([np.asarray(a, np.float32) for a in changed])
            yield f"{case.name}, {count} of {len(case.shapes)} arrays {name}", draws


def run(case: Case, arrays: Arrays, kind: str) -> Arrays:
    """The operation's values and then the gradients of its arguments, for random upstream gradients."""
    tensors = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    with use_kernels(kind), np.errstate(all="ignore"):
        returned = case.function(*tensors)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        for i, y in enumerate(outputs):
            y.backward(upstream(i, y.shape).astype(y.dtype), retain_graph=i + 1 < len(outputs))
    return [y.data for y in outputs] + [tensor.grad for tensor in tensors]


def upstream(output: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.random.default_rng(100 + output).standard_normal(shape).astype(np.float32))


def truth_of(case: Case, arrays: Arrays) -> Arrays:
    return run(case, [a.astype(np.float64) for a in arrays], "reference")


# The rule ----------------------------------------------------------------------------------------


def in_float32(truth: np.ndarray) -> np.ndarray:
    """Rounded, and then wide again: infinite where it does not fit."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(truth, np.float64).astype(np.float32).astype(np.float64)


def error(got: Any, truth: np.ndarray) -> float:
    """How far the worst element is off, in units in the last place of the largest; inf where what should be finite is
    not, or the other way round."""
    got, fits = np.asarray(got, np.float64), in_float32(truth)
    finite = np.isfinite(fits)
    if not np.array_equal(got[~finite], fits[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf
    unit = float(np.spacing(np.float32(np.abs(fits[finite]).max(initial=0.0))))
    return float(np.abs(got[finite] - np.asarray(truth)[finite]).max(initial=0.0)) / unit


def moved(case: Case, arrays: Arrays, truth: Arrays) -> Arrays:
    """The truth itself; for attention as far from it as the sums of D terms in scores and in their gradients allow."""
    if case.of_scores is None:
        return truth
    rng, unit = np.random.default_rng(9), EPS * D**0.5
    found = truth_of(case, [a * (1 + unit * rng.choice([-1.0, 1.0], a.shape)) for a in arrays])
    q, k, v = (a.astype(np.float64) for a in arrays)
    is_causal, scale = case.of_scores
    s = scores(q, k, is_causal, scale)
    with np.errstate(all="ignore"):
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        ds = unit * scale * p * (abs(upstream(0, truth[0].shape)) @ abs(v).swapaxes(-1, -2))  # of p (dy v - delta)
        return [
            found[0],
            truth[1] + abs(found[1] - truth[1]) + ds @ abs(k),
            truth[2] + abs(found[2] - truth[2]) + ds.swapaxes(-1, -2) @ abs(q),
            found[3],
        ]


def errors_of(case: Case, draws: list[Arrays], truths: list[Arrays], kind: str) -> list[float]:
    return worst([run(case, arrays, kind) for arrays in draws], truths)


def worst(draws: list[Arrays], truths: list[Arrays]) -> list[float]:
    """For each result the error in the worst of the draws."""
    errors = [[error(g, t) for g, t in zip(got, truth, strict=True)] for got, truth in zip(draws, truths, strict=True)]
    return [max(of_result) for of_result in zip(*errors, strict=True)]


def broken(what: str, ours: list[float], theirs: list[float], allowed: list[float]) -> list[str]:
    """What breaks the rule, in words. allowed: beside the rule's own."""
    return [
        f"{what}: result {i} is off by {a:.3g} units in the last place, allowed are {2 * b + 1 + more:.3g}"
        for i, (a, b, more) in enumerate(zip(ours, theirs, allowed, strict=True))
        if not a <= 2 * b + 1 + more
    ]


def not_finite(case: Case) -> Iterator[tuple[str, Arrays]]:
    """A draw with NaN, infinity or -infinity in one place, at the beginning of a row, in its rest, or all along."""
    for value in (np.nan, np.inf, -np.inf):
        for place in (slice(0, 1), slice(-2, -1), slice(None)):
            for argument in range(len(case.shapes)):
                rng = np.random.default_rng(0)
                arrays = [values(rng, shape) for values, shape in zip(case.values, case.shapes, strict=False)]
                arrays[argument].reshape(-1, arrays[argument].shape[-1])[0, place] = value
                what = f"{case.name}, {value} at {place} of array {argument}"
                yield what, [np.asarray(a, np.float32) for a in arrays]


def alike(case: Case, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the same elements are NaN, and the same infinite with the same sign. In attention what the mask hides may
    be finite: the reference multiplies it by 0, the compiled body does not look at it."""
    if case.name == "attention":
        return bool((np.isfinite(ours) | ~np.isfinite(theirs)).all())
    finite = np.isfinite(theirs)
    return np.array_equal(np.isfinite(ours), finite) and np.array_equal(ours[~finite], theirs[~finite], equal_nan=True)


def compiled_not_finite() -> list[str]:
    """Where NaN and infinities come out of this process's compiled bodies otherwise than of the reference."""
    found = []
    for case in CASES:
        for what, arrays in not_finite(case):
            results = zip(run(case, arrays, "auto"), run(case, arrays, "reference"), strict=True)
            found += [f"{what}: result {i}" for i, (a, b) in enumerate(results) if not alike(case, a, b)]
    return found


def compiled_against_reference() -> list[str]:
    """What the compiled bodies of this process's level break."""
    found = []
    for case in CASES:
        for what, draws in examples(case):
            truths = [truth_of(case, arrays) for arrays in draws]
            allowed = worst([moved(case, a, t) for a, t in zip(draws, truths, strict=True)], truths)
            ours, theirs = (errors_of(case, draws, truths, kind) for kind in ("auto", "reference"))
            found += broken(what, ours, [max(e, 1.0) for e in theirs], allowed)
    return found
