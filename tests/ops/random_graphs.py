"""Random graphs: programs of the operations in `random_graph_operations.py` and the rows; their gradients checked.

    python -m tests.ops.random_graphs --graphs 2000 --seed 7     # fresh graphs: those of this seed, or of a new one

A graph has leaves in several memory layouts, results that are used again, views, slices, arrays without axes and empty
ones, and one to three results from which `backward` starts, some of them twice with `retain_graph`. It is run in
float64, where the gradients must be the differences of its values, with the reference bodies, which must agree, and in
float32, which must agree with float64 but for rounding. Which leaves have a gradient at all follows from the program.

Choices come from a `Chooser`: of random numbers here, of hypothesis in `test_random_graphs.py`, which can then make a
failing graph smaller.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tinygpt as tg
from tests.ops import random_graph_operations
from tests.ops.cases import ROWS
from tests.ops.drawing import lay_out
from tests.ops.random_graph_operations import Operation
from tinygpt.kernel import use_kernels
from tinygpt.tensor import Tensor

dismissed = Counter[str]()  # graphs that were not checked, and why
OPERATIONS = [
    *random_graph_operations.OPERATIONS,
    *(Operation(row.name, row.graph, row.function) for row in ROWS if row.graph is not None),
]
BY_NAME = {operation.name: operation for operation in OPERATIONS}
LARGEST = 30.0  # values beyond it make no part of a graph: differences and float32 would lose their digits
STEP = 1e-5
ROUNDING = 1e-4  # of float32, against the largest gradient: 10,000 graphs came to 4e-6


class WrongGraphError(AssertionError):
    """A graph whose gradients are wrong; the message has the program."""


@dataclass
class Leaf:
    array: np.ndarray  # float64, with numbers that float32 has
    layout: str
    requires_grad: bool


@dataclass
class Step:
    name: str
    operands: tuple[int, ...]
    options: dict[str, Any]
    outputs: tuple[int, ...]


@dataclass
class Program:
    """What is computed: values 0, 1, ... are leaves and the outputs of steps, in the order of making."""

    leaves: dict[int, Leaf] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    reads: dict[int, frozenset[int]] = field(default_factory=dict)  # value -> the leaves that it is a function of
    roots: list[tuple[int, np.ndarray, int]] = field(default_factory=list)  # (value, upstream gradient, how often)

    def __str__(self) -> str:
        lines = [
            f"v{i} = leaf{leaf.array.shape} {leaf.layout}{'' if leaf.requires_grad else ' constant'}"
            for i, leaf in self.leaves.items()
        ]
        for step in self.steps:
            made = ", ".join(f"v{i}" for i in step.outputs)
            lines.append(f"{made} = {step.name}({', '.join(f'v{i}' for i in step.operands)}, {step.options})")
        return "\n".join([*lines, *(f"v{i}.backward({dy.tolist()}) x {n}" for i, dy, n in self.roots)])


class Chooser:
    """Choices by random numbers."""

    def __init__(self, seed: int | Sequence[int]) -> None:
        self.random = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))


class Builder:
    """Makes a program step by step. It knows the values, so that it can keep away from kinks and poles."""

    def __init__(self, integer: Callable[[int, int], int], steps: int) -> None:
        self.integer = integer
        self.program = Program()
        self.values: list[np.ndarray] = []
        self.favourite = -1  # a value that is used again and again
        self.leaf(self.shape())
        for _ in range(steps):
            operation = self.one_of(OPERATIONS)
            proposed = operation.propose(self)
            if proposed is not None:
                made = self.step(operation.name, *proposed)
                if made and (self.favourite < 0 or self.chance(6)):
                    self.favourite = made[0]
        if self.chance(2):
            self.add_up()
        self.choose_roots()

    # Choices --------------------------------------------------------------------------------------

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[self.integer(0, len(choices) - 1)]

    def chance(self, of: int) -> bool:
        return self.integer(1, of) == of

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.integer(0, 2**32 - 1))

    def shuffled(self, items: Any) -> list[Any]:
        rest, order = list(items), []
        while rest:
            order.append(rest.pop(self.integer(0, len(rest) - 1)))
        return order

    def shape(self) -> tuple[int, ...]:
        sizes = (2, 3, 4, 1, 2, 3, 4, 5, 0) if self.chance(4) else (2, 3, 4, 1, 5)
        return tuple(self.one_of(sizes) for _ in range(self.one_of((2, 1, 3, 0, 2, 3))))

    def axes(self, ndim: int) -> Any:
        if ndim == 0 or self.chance(3):
            return None
        chosen = self.shuffled(range(ndim))[: self.integer(1, ndim)]
        return chosen[0] - ndim if len(chosen) == 1 and self.chance(2) else tuple(chosen)

    # Values ---------------------------------------------------------------------------------------

    def leaf(self, shape: tuple[int, ...], kind: str = "normal") -> int:
        rng = self.rng()
        array = np.asarray(rng.standard_normal(shape))
        if kind != "normal":
            array = np.asarray(rng.uniform(0.4, 2.0, shape))
            if kind == "away":
                array = array * rng.choice([-1.0, 1.0], shape)
        array = np.asarray(array).astype(np.float32).astype(np.float64)
        layout = self.one_of(("C", "C", "F", "permuted", "strided", "negative", "read-only"))
        index = len(self.values)
        self.program.leaves[index] = Leaf(array, layout, not self.chance(5))
        self.values.append(array)
        self.program.reads[index] = frozenset([index] if self.program.leaves[index].requires_grad else [])
        return index

    def again(self, fitting: Sequence[int]) -> int:
        return self.favourite if self.favourite in fitting and self.chance(2) else self.one_of(fitting)

    def value(self, condition: Any = lambda x: True, kind: str = "normal", shape: Any = None) -> int:
        """A value for which the condition holds, rather a late one, or a new leaf."""
        fitting = [i for i, x in enumerate(self.values) if condition(x)]
        if fitting and not self.chance(8):
            return self.again(fitting[-4:] if self.chance(2) else fitting)
        for _ in range(20):
            made = self.leaf(shape or self.shape(), kind)
            if condition(self.values[made]):
                return made
        return self.leaf((2, 3), "normal") if not fitting else fitting[-1]

    def like(self, shape: tuple[int, ...]) -> int:
        """A value of this very shape, or a new leaf."""
        fitting = [i for i, x in enumerate(self.values) if x.shape == tuple(shape)]
        return self.again(fitting) if fitting and not self.chance(3) else self.leaf(tuple(shape))

    def partner(self, a: int, condition: Any = lambda x: True, kind: str = "normal") -> int:
        """A value whose shape broadcasts against that of value a."""
        shape = self.values[a].shape
        fitting = [i for i, x in enumerate(self.values) if broadcast(shape, x.shape) and condition(x)]
        if fitting and not self.chance(3):
            return self.again(fitting)
        kept = shape[self.integer(0, len(shape)) :] if self.chance(2) else shape
        sizes = tuple(1 if self.chance(3) else size for size in kept)
        return self.leaf((2, *sizes) if len(sizes) == len(shape) < 3 and self.chance(4) else sizes, kind)

    def step(self, name: str, operands: tuple[int, ...], options: dict[str, Any]) -> tuple[int, ...] | None:
        """Append a step and return its outputs; None when its values are no good."""
        with tg.no_grad():
            made = outputs_of(name, [Tensor(self.values[i]) for i in operands], options)
        for y in made:
            if y.size > 400 or (y.size and not float(np.abs(y.data).max()) < LARGEST):
                return None
        if name == "residual_layer_norm" and made[0].size and made[0].data.std(axis=-1).min() < 0.3:
            return None
        outputs = tuple(range(len(self.values), len(self.values) + len(made)))
        self.values += [y.data for y in made]
        self.program.steps.append(Step(name, operands, options, outputs))
        reads = BY_NAME[name].reads
        places = ((tuple(range(len(operands))),) * len(made)) if reads is None else reads(len(operands), **options)
        for output, read in zip(outputs, places, strict=True):
            self.program.reads[output] = frozenset().union(*(self.program.reads[operands[i]] for i in read))
        return outputs

    def add_up(self) -> None:
        """The sum of several values' sums, some of them more than once: what losses are made of."""
        total: tuple[int, ...] | None = None
        for _ in range(self.integer(2, 6)):
            term = self.step("sum", (self.value(),), {}) if self.chance(2) or total is None else (self.favourite,)
            if term is not None and self.values[term[0]].ndim == 0:
                total = term if total is None else self.step("add", (*total, *term), {}) or total
                self.favourite = term[0]

    def choose_roots(self) -> None:
        fitting = [i for i, leaves in self.program.reads.items() if leaves]
        for _ in range(self.integer(1, 3) if fitting else 0):
            root = self.one_of(fitting[-3:] if self.chance(2) else fitting)
            upstream = np.asarray(self.rng().standard_normal(self.values[root].shape))
            self.program.roots.append((root, upstream.astype(np.float32).astype(np.float64), self.integer(1, 2)))


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b), strict=False))


def outputs_of(name: str, tensors: Sequence[Any], options: dict[str, Any], table: Any = None) -> tuple[Any, ...]:
    run = BY_NAME[name].run if table is None else table[name]
    made = run(*tensors, **options)
    return tuple(made) if isinstance(made, (tuple, list)) else (made,)


# Running ------------------------------------------------------------------------------------------


def values_of(program: Program, leaves: dict[int, Any], table: Any = None) -> list[Any]:
    """All values, from those of the leaves: tensors of ours, or of whoever made the table of operations."""
    values = dict(leaves)
    for step in program.steps:
        made = outputs_of(step.name, [values[i] for i in step.operands], step.options, table)
        values.update(zip(step.outputs, made, strict=True))
    return [values[i] for i in range(len(values))]


def gradients(program: Program, dtype: Any) -> tuple[list[np.ndarray], dict[int, Any]]:
    """The values, and each leaf's gradient."""
    leaves = {
        i: Tensor(lay_out(leaf.array.astype(dtype), leaf.layout), requires_grad=leaf.requires_grad)
        for i, leaf in program.leaves.items()
    }
    values = values_of(program, leaves)
    before = [value.data.copy() for value in values]
    calls = [(root, upstream) for root, upstream, times in program.roots for _ in range(times)]
    for number, (root, upstream) in enumerate(calls, start=1):
        values[root].backward(upstream.astype(dtype), retain_graph=number < len(calls))
    require(all(same(v.data, b) for v, b in zip(values, before, strict=True)), program, "backward() changed a value")
    return before, {i: leaf.grad for i, leaf in leaves.items()}


def check(program: Program) -> float:
    """Raise WrongGraphError where something is wrong; otherwise how far float32 is off, in parts of the largest."""
    values, grads = gradients(program, np.float64)
    reached = frozenset().union(*(program.reads[root] for root, _, _ in program.roots))
    for i, grad in grads.items():
        require((grad is not None) == (i in reached), program, f"leaf v{i} has a gradient: {grad is not None}")
        if grad is not None:
            fits = grad.shape == program.leaves[i].array.shape and grad.dtype == np.float64 and grad.flags.writeable
            require(fits, program, f"the gradient of leaf v{i} has another shape or dtype")
            shared = any(np.shares_memory(grad, other) for j, other in grads.items() if j != i and other is not None)
            require(not shared, program, f"the gradient of leaf v{i} is that of another leaf, too")
    check_differences(program, grads)
    with use_kernels("reference"):
        others, again = gradients(program, np.float64)
    scale = max([1.0, *(float(np.abs(g).max()) for g in grads.values() if g is not None and g.size)])
    require(worst(values, others) < 1e-9, program, "the reference bodies give other values")
    require(worst(grads.values(), again.values()) < 1e-9 * scale, program, "the reference bodies give other gradients")
    narrow, rounded = gradients(program, np.float32)
    off = max(worst(values, narrow) / LARGEST, worst(grads.values(), rounded.values()) / scale)
    require(all(g is None or g.dtype == np.float32 for g in rounded.values()), program, "float32 has float64 gradients")
    require(off < ROUNDING, program, f"float32 is off by {off:.2g} of the largest gradient")
    return off


def check_differences(program: Program, grads: dict[int, Any]) -> None:
    """<grads, v> against four-point differences of the values along a random direction v of all leaves together."""
    rng = np.random.default_rng(len(program.steps))
    directions = {i: rng.standard_normal(leaf.array.shape) for i, leaf in program.leaves.items()}
    got = sum(float(np.vdot(grad, directions[i])) for i, grad in grads.items() if grad is not None)
    expected, size = differences(program, directions, STEP)
    if abs(expected - got) <= 1e-6 * (1 + abs(got) + size):
        return
    nearer, _ = differences(program, directions, STEP / 8)
    kink = abs(nearer - expected) > 0.01 * abs(expected - got)  # then the differences don't agree among themselves
    dismissed["at a kink"] += kink
    require(kink, program, f"the derivative is {expected:.9g}, backward gives {got:.9g}")


def differences(program: Program, directions: dict[int, Any], step: float) -> tuple[float, float]:
    total = size = 0.0
    for steps, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
        moved = {
            i: Tensor(np.asarray(leaf.array + (steps * step * directions[i] if leaf.requires_grad else 0.0)))
            for i, leaf in program.leaves.items()
        }
        with tg.no_grad():
            values = frozen(program, moved)
        results = [times * float(np.vdot(upstream, values[root].data)) for root, upstream, times in program.roots]
        total, size = total + factor * sum(results), max(size, *(abs(r) for r in results))
    return total / (12 * step), size


def frozen(program: Program, leaves: dict[int, Any]) -> list[Any]:
    """All values, with what `detach` and `no_grad` cut off held at what it is in the program itself."""
    still = {i: Tensor(leaf.array) for i, leaf in program.leaves.items()}
    moving = dict(leaves)
    for step in program.steps:
        fixed = outputs_of(step.name, [still[i] for i in step.operands], step.options)
        made = fixed if step.name in ("detach", "no_grad") else None
        made = made or outputs_of(step.name, [moving[i] for i in step.operands], step.options)
        still.update(zip(step.outputs, fixed, strict=True))
        moving.update(zip(step.outputs, made, strict=True))
    return [moving[i] for i in range(len(moving))]


def worst(some: Any, others: Any) -> float:
    """The largest difference between arrays of two lists."""
    pairs = [(a, b) for a, b in zip(some, others, strict=True) if a is not None and a.size]
    return max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def require(holds: bool, program: Program, words: str) -> None:
    if not holds:
        raise WrongGraphError(f"{words}, in the graph\n{program}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--torch", action="store_true", help="compare with PyTorch as well")
    options = parser.parse_args()
    found, used, largest = 0, Counter[str](), 0.0
    for number in range(options.graphs):
        chooser = Chooser([options.seed, number])
        program = Builder(chooser.integer, chooser.integer(2, 14)).program
        used.update(step.name for step in program.steps)
        if not program.roots:
            dismissed["without a gradient"] += 1
            continue
        try:
            largest = max(largest, check(program))
            if options.torch:
                from tests.ops.random_graph_torch import check_with_torch

                check_with_torch(program)
        except Exception as error:
            found += 1
            print(f"graph {number} of seed {options.seed}: {type(error).__name__}: {error}", flush=True)
    print(f"{options.graphs} graphs of seed {options.seed}: {found} wrong; float32 is off by {largest:.2g} at most")
    print(f"not compared: {dict(dismissed)}")
    print("steps: " + ", ".join(f"{name} {count}" for name, count in sorted(used.items())))
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
