"""The checker is checked: a wrong backward pass must fail, for every operation.

Three kinds of wrong: each input's gradient scaled by 1.001, each input's gradient transposed, and each place of the
backward pass's source broken in turn (`mutation.py`). Some broken places change nothing that could be seen; they are
listed in EQUIVALENT with the reason, and a test sees to it that the list has no entry that is caught after all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import tinygpt as tg
from tests.ops.cases import ROWS
from tests.ops.drawing import Example, Row, some_examples
from tests.ops.mutation import mutants, parts, recompiled, roots
from tinygpt import testing
from tinygpt.errors import UsageError
from tinygpt.function import Function
from tinygpt.kernel import REGISTRY, use_kernels
from tinygpt.tensor import Tensor
from tinygpt.testing import GradientError, check_gradients

EXAMPLES = 40

# How a wrong backward fails: a wrong gradient, one of a wrong shape, or arrays that do not fit together on the way. A
# NameError would be a mistake of the mutation, and is an error of the test.
FAILURES = (AssertionError, ValueError, IndexError, TypeError, ArithmeticError, AttributeError)

# Its gradients are computed in the forward pass, while the logits are there.
GRADIENTS_IN_FORWARD = {"LinearCrossEntropy"}

ANY = "*"  # functions that many classes call

# Why the gradient is the same all the same: (class, what was changed, or a function of which this holds everywhere).
EQUIVALENT: dict[str, list[tuple[str, str]]] = {
    "integers have no gradient": [
        (ANY, "long_sum: x.sum(axis=axes, keepdims=keepdims)  ->  _sum(x, axis=axes, keepdims=keepdims)"),
    ],
    "the two differ only for a probability of dropping within 2**-33 of 1": [
        (ANY, "threshold: 2 ** 32 - 1  ->  2 ** 32"),
    ],
    "without ties one element is the maximum (test_edges.py has the ties, where differences can't go)": [
        (
            name,
            "backward: _expand(dy, x.shape, self.axes) / chosen.sum(axis=self.axes, keepdims=True, dtype=x.dtype)"
            "  ->  _expand(dy, x.shape, self.axes)",
        )
        for name in ("Max", "Min")
    ],
    "this is the loss, which test_operations.py compares with the oracle, not the gradient": [
        ("LinearCrossEntropy", "cross_entropy_forward"),
        ("LinearCrossEntropy", "two_parts"),
        ("LinearCrossEntropy", "forward"),
        ("LinearCrossEntropy", "with_sum"),
        ("LinearCrossEntropy", "as_scalar"),
        ("LinearCrossEntropy", "cross_entropy_inplace: xp.log(total) - picked  ->  xp.log(total)"),
        ("LinearCrossEntropy", "cross_entropy_inplace: xp.log(total) - picked  ->  -picked"),
    ],
    "what rounding has cut off from a statistic is below these differences (test_numerics.py shows it)": [
        *[
            (name, f"{function}: {change}")
            for name, function, product in (
                ("CrossEntropy", "cross_entropy_backward", "dlogits *= xp.exp(-rest)"),
                ("Attention", "attention_backward", "p *= xp.exp(-rest)"),
                ("QKVAttention", "attention_backward", "p *= xp.exp(-rest)"),
            )
            for change in ("-rest  ->  rest", f"{product}  ->  pass")
        ],
        *[
            (
                name,
                "layer_norm_backward: mean.sum(axis=1, dtype=np.float64)  ->  _sum(mean, axis=1, dtype=np.float64)",
            )
            for name in ("LayerNorm", "ResidualLayerNorm")
        ],
    ],
    "1 but in float16 (tests/cuda/test_mixed_precision.py has that)": [
        ("LinearCrossEntropy", "backward: as_factor(dy) * self.later  ->  as_factor(dy)"),
    ],
    "a shift of the logits changes no probability; it only keeps exp from overflowing": [
        ("LinearCrossEntropy", "cross_entropy_inplace: logits -= logits.max(axis=1, keepdims=True)  ->  pass"),
    ],
    "the rows may be cut into blocks of any size": [
        (
            "LinearCrossEntropy",
            "blocks: -(-N * V * itemsize // (times * BLOCK_BYTES))  ->  -N * V * itemsize // (times * BLOCK_BYTES)",
        ),
        ("LinearCrossEntropy", "blocks: times * BLOCK_BYTES  ->  times"),
        ("LinearCrossEntropy", "blocks: times * BLOCK_BYTES  ->  BLOCK_BYTES"),
        ("LinearCrossEntropy", "blocks: -N * V * itemsize  ->  -N * V"),
        ("LinearCrossEntropy", "blocks: -N * V * itemsize  ->  itemsize"),
        ("LinearCrossEntropy", "blocks: -N * V  ->  -N"),
        ("LinearCrossEntropy", "blocks: -N * V  ->  V"),
        ("LinearCrossEntropy", "blocks: -N  ->  N"),
    ],
    "in 16 bits alone (tests/cuda/test_mixed_precision.py has that)": [
        ("LinearCrossEntropy", "loss_and_gradients: -np.inf  ->  np.inf"),
        ("LinearCrossEntropy", "padded"),
    ],
}


def usable_examples(row: Row) -> list[Example]:
    """Examples with elements in them, those with the most arrays and axes first: they catch most."""
    found = [e for e in some_examples(row.examples, EXAMPLES) if all(a.size for a in e.make())]
    return sorted(found, key=lambda e: -sum(min(a.size, 40) for a in e.make()))


@pytest.fixture(autouse=True)
def reference_kernels() -> Iterator[None]:
    """Mutants are made from the references: what is around them is left as it is.

    New memory is full of NaN: what a wrong backward leaves unwritten would otherwise hold, often enough, the right
    numbers of an array freed before.
    """
    with use_kernels("reference"), patch.object(np, "empty", full_of_nan(np.empty)):
        yield


def full_of_nan(empty: Any) -> Callable[..., np.ndarray]:
    def made(*arguments: Any, **options: Any) -> np.ndarray:
        array = empty(*arguments, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    return made


@pytest.fixture(scope="module")
def examples() -> Callable[[Row], list[Example]]:
    made: dict[str, list[Example]] = {}

    def of(row: Row) -> list[Example]:
        if row.name not in made:
            made[row.name] = usable_examples(row)
        return made[row.name]

    return of


def check(row: Row, example: Example) -> None:
    check_gradients(lambda *tensors: row.function(*tensors, **example.options), *example.make(), directions=1)


def each_gradient(node: type[Function], change: Callable[[Any], Any], index: int) -> Callable[..., Any]:
    """The node's backward with one of its results changed."""
    right = node.backward

    def backward(self: Function, *dys: Any) -> Any:
        grads = right(self, *dys)
        several = isinstance(grads, tuple)
        changed = list(grads) if several else [grads]
        if index < len(changed) and changed[index] is not None:
            changed[index] = change(np.asarray(changed[index]))
        return tuple(changed) if several else changed[0]

    return backward


def transposed(grad: np.ndarray) -> np.ndarray:
    """The elements in another order: the last two axes of more than one element exchanged, or one axis turned round."""
    axes = [i for i, size in enumerate(grad.shape) if size > 1]
    if len(axes) < 2:
        return np.flip(grad)
    return grad.swapaxes(axes[-1], axes[-2]).reshape(grad.shape)


def gradients_returned(row: Row, node: type[Function], examples: list[Example], patch: Any) -> set[int]:
    """Which inputs of the node get a gradient in the examples."""
    seen: set[int] = set()
    right = node.backward

    def backward(self: Function, *dys: Any) -> Any:
        grads = right(self, *dys)
        several = grads if isinstance(grads, tuple) else (grads,)
        seen.update(i for i, g in enumerate(several) if g is not None)
        return grads

    with patch.context() as patched:
        patched.setattr(node, "backward", backward)
        for example in examples:
            check(row, example)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda grad: grad * 1.001, transposed], ids=["scaled by 1.001", "transposed"])
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_changed_gradient_fails(row: Row, change: Any, examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in row.nodes:
        inputs = gradients_returned(row, node, examples(row), monkeypatch)
        assert inputs
        for index in inputs:
            with monkeypatch.context() as patched:
                patched.setattr(node, "backward", each_gradient(node, change, index))
                caught = any(is_caught(row, example, GradientError) for example in examples(row))
            assert caught, f"{node.__name__}: a wrong gradient of input {index} passes the check"


def is_caught(row: Row, example: Example, *errors: type[Exception]) -> bool:
    with patch.object(testing, "_worst_element", lambda *gradient: ""):  # half of the time, for words nobody reads here
        try:
            check(row, example)
        except errors:
            return True
        return False


def only_with_gradients(node: type[Function], wrong: Callable[..., Any]) -> Callable[..., Any]:
    """The wrong forward for the pass that has a backward, the right one for the differences."""
    right = node.forward

    def forward(self: Function, *arrays: Any, **options: Any) -> Any:
        return (wrong if any(self.needs) else right)(self, *arrays, **options)

    return forward


NODES = {node.__name__: node for row in ROWS for node in row.nodes}


def wrong_backwards(node: type[Function]) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(what was changed, the method, the wrong method)."""
    in_forward = node.__name__ in GRADIENTS_IN_FORWARD
    for change, wrong in mutants(node):
        if not in_forward or change.startswith("backward: "):
            yield change, "backward", wrong
    if in_forward:
        for change, wrong in mutants(node, "forward"):
            yield change, "forward", only_with_gradients(node, wrong)


def survivors(node: type[Function], examples: Any, patch: Any) -> tuple[list[str], list[str]]:
    """Changes to the backward pass that no example of any row notices, and those that one does."""
    cases = [(row, example) for row in ROWS if node in row.nodes for example in examples(row)]
    passed: list[str] = []
    caught: list[str] = []
    for change, method, wrong in wrong_backwards(node):
        with patch.context() as patched:
            patched.setattr(node, method, wrong)
            noticed = any(is_caught(row, example, *FAILURES) for row, example in cases)
        (caught if noticed else passed).append(change)
    return passed, caught


@pytest.mark.slow
@pytest.mark.parametrize("name", NODES)
def test_the_machinery_breaks_nothing_by_itself(name: str, examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of every backward pass, recompiled but unchanged, passes."""
    for _, right in recompiled(NODES[name]):
        with monkeypatch.context() as patched:
            patched.setattr(NODES[name], "backward", right)
            for row in ROWS:
                if NODES[name] in row.nodes:
                    for example in examples(row):
                        check(row, example)


def is_listed(node: str, change: str) -> bool:
    keys = {(who, what) for who in (node, ANY) for what in (change, change.partition(": ")[0])}
    return any(key in keys for entries in EQUIVALENT.values() for key in entries)


@pytest.mark.slow
@pytest.mark.parametrize("name", NODES)
def test_every_broken_place_fails(name: str, examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that make no difference, which are listed; and the list holds no other."""
    passed, caught = survivors(NODES[name], examples, monkeypatch)
    assert [change for change in passed if not is_listed(name, change)] == []
    assert [change for change in caught if is_listed(name, change) and change not in passed] == []


@functools.cache
def changes_to(node: type[Function]) -> list[str]:
    return [change for change, _, _ in wrong_backwards(node)]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for entries in EQUIVALENT.values() for entry in entries], ids=lambda e: e[1])
def test_the_list_names_changes_that_are_made(entry: tuple[str, str]) -> None:
    nodes = NODES.values() if entry[0] == ANY else [NODES[entry[0]]]
    changes = {change for node in nodes for change in changes_to(node)}
    assert entry[1] in changes | {change.partition(": ")[0] for change in changes}


def test_mutation_comes_to_every_kernel() -> None:
    """Each backward kernel is broken in the backward pass of some node."""
    reached = {part.__name__ for node in NODES.values() for root in roots(node).values() for part in parts(root)}
    backward = {name for name in REGISTRY if "backward" in name}
    assert backward - reached == set()
    assert {"unbroadcast", "column_sum", "long_sum"} <= reached


# What check_gradients says and refuses ---------------------------------------------------------------


class Square(Function):
    """A user's own operation, with a backward that the tests make wrong."""

    factor = 2.0

    def forward(self, x: Any) -> Any:
        self.save(x)
        return x * x

    def backward(self, dy: Any) -> Any:
        (x,) = self.saved
        dx = self.factor * dy * x
        if self.factor == 0.0:
            dx = 2 * dy * x
            dx.reshape(-1)[3] += 0.5
        return dx


def test_a_users_own_function_passes() -> None:
    check_gradients(Square.apply, np.random.default_rng(0).standard_normal((3, 4)))


def test_the_message_names_the_input_and_the_worst_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Square, "factor", 0.0)
    x = np.arange(1.0, 7.0).reshape(2, 3)
    with pytest.raises(GradientError, match=r"the gradient of input 1 \(shape \(2, 3\)\).*worst element is \(1, 0\)"):
        check_gradients(lambda a, b: a + Square.apply(b), x, x)


def test_a_nan_gradient_fails() -> None:
    with pytest.raises(GradientError, match="nan"):
        check_gradients(lambda x: (x - x).sqrt() * 1.0, np.ones(2))


def test_a_large_input_is_searched_in_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Square, "factor", 2.002)
    with pytest.raises(GradientError, match="of 400 searched"):
        check_gradients(Square.apply, np.ones(500))


def test_a_gradient_of_the_sum_would_miss_what_random_gradients_catch() -> None:
    """The sum of a normalised row is constant: against ones any factor passes, which is why it is never used."""
    x = np.random.default_rng(0).standard_normal((2, 5))

    def normalised(t: Tensor) -> Tensor:
        e = t.exp()
        return e / e.sum(axis=-1, keepdims=True)

    tensor = Tensor(x, requires_grad=True)
    normalised(tensor).sum().backward()
    assert np.abs(tensor.grad).max() < 1e-15
    check_gradients(normalised, x)


def test_several_outputs_and_integer_inputs() -> None:
    x, index = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 0, 2])
    check_gradients(lambda t, i: (t[i], t.sum(axis=0), i), x, index)


def test_an_input_without_influence_has_gradient_zero() -> None:
    check_gradients(lambda a, b: a * 2.0, np.ones(3), np.ones(2))


@pytest.mark.parametrize(
    ("function", "arrays", "sentence"),
    [
        (lambda x: x, (np.arange(3),), "none of the arrays is floating-point"),
        (lambda x: x.data, (np.ones(3),), "must return a tensor"),
        (lambda x: x > 0, (np.ones(3),), "no output of the function is floating-point"),
        (lambda x: x * np.random.default_rng().random(), (np.ones(3),), "different results"),
    ],
)
def test_what_cannot_be_checked_is_refused(function: Any, arrays: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_gradients(function, *arrays)


def test_it_is_public() -> None:
    assert tg.testing.check_gradients is check_gradients
