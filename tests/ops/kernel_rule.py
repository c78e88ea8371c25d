"""The error rule of the kernels' tests: how far a fast body may be from its reference.

The reference in float64 is taken for the truth. In float32 both bodies round; the compiled one, which adds in another
order, may be off twice as far as the reference is, and no more:

    err(compiled32, reference64) <= 2 * err(reference32, reference64) + tiny

`tiny` is for results that the reference happens to get exactly, and it is measured as well: how far the reference moves
when its inputs and each of its intermediate results are rounded at random (`rounding.py`). In float64, which has no
truth above it, that is the whole allowance for the distance between the two bodies, doubled because both round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.ops.drawing import Example, KernelRow
from tests.ops.rounding import Rounding, rounded
from tinygpt.backends import numpy as numpy_backend
from tinygpt.kernel import REGISTRY, use_kernels

EPS16, EPS32, EPS64 = (float(np.finfo(dtype).eps) for dtype in (np.float16, np.float32, np.float64))


def results(row: KernelRow, kind: str, arguments: list[Any]) -> list[np.ndarray]:
    """What the kernel returns and what it writes, as float64 arrays."""
    return [value for value in all_results(row, kind, arguments) if value is not None]


def all_results(row: KernelRow, kind: str, arguments: list[Any]) -> list[np.ndarray | None]:
    """`results`, and None in the place of each that the kernel leaves out."""
    with use_kernels(kind), np.errstate(all="ignore"):
        returned = (row.kernel or REGISTRY[row.name])(*arguments)
    returned = returned if isinstance(returned, tuple) else (returned,)
    written = [arguments[i] for i in row.writes]
    return [None if value is None else np.asarray(value, dtype=np.float64) for value in (*returned, *written)]


def doubled(arguments: list[Any], rounding: Rounding | None = None) -> list[Any]:
    """Fresh arguments with float64 arrays; with a rounding they are rounded, and so is what is computed of them."""
    fresh = [np.array(a, np.float64 if a.dtype.kind == "f" else None) if is_array(a) else a for a in arguments]
    if rounding is not None:
        fresh = [rounded(rounding.nudge(a), rounding) if is_array(a) and a.dtype.kind == "f" else a for a in fresh]
    return fresh


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0))


def moved_by_rounding(
    row: KernelRow, arguments: list[Any], truth: list[np.ndarray], in_sums: bool, eps: float = EPS32
) -> list[float]:
    """For each result the farthest it goes in four choices of float32 roundings, and one rounding of the result.

    Matrix products are summed in the precision of their factors by every body, the references' too.
    """
    repeated = any(is_array(a) and 0 in a.strides and a.size > 1 for a in arguments)  # broadcast
    roundings = [Rounding(eps, seed, in_sums, in_products=True, repeated=repeated) for seed in range(4)]
    choices = [results(row, "reference", doubled(arguments, rounding)) for rounding in roundings]
    return [max(largest(choice[i] - true) for choice in choices) + eps * largest(true) for i, true in enumerate(truth)]


def float32_budget(row: KernelRow, example: Example) -> tuple[list[np.ndarray], list[float]]:
    """The truth for each result, and how far from it a float32 body may be."""
    truth = results(row, "reference", doubled(example.make(np.float32)))
    reference = results(row, "reference", example.make(np.float32))
    tiny = moved_by_rounding(row, example.make(np.float32), truth, in_sums=False)
    return truth, [2 * largest(r - t) + small for r, t, small in zip(reference, truth, tiny, strict=True)]


def float64_budget(row: KernelRow, example: Example) -> tuple[list[np.ndarray], list[float]]:
    """What the reference gives in float64, and how far from it another body may be."""
    expected = results(row, "reference", example.make())
    far = moved_by_rounding(row, example.make(), expected, in_sums=True)
    return expected, [2 * distance * EPS64 / EPS32 for distance in far]


def float16_budget(row: KernelRow, arguments: list[Any]) -> tuple[list[np.ndarray], list[float]]:
    """The truth for each result on arrays of float16, and how far from it a body may be that computes in float32."""
    truth = results(row, "reference", doubled(arguments))
    return truth, [2 * distance for distance in moved_by_rounding(row, arguments, truth, in_sums=False, eps=EPS16)]


def assert_within(got: list[np.ndarray], expected: list[np.ndarray], budget: list[float]) -> None:
    assert len(got) == len(expected)
    for i, (g, e, allowed) in enumerate(zip(got, expected, budget, strict=True)):
        assert g.shape == e.shape, f"result {i}"
        assert np.isfinite(g).all(), f"result {i}"
        assert largest(g - e) <= allowed, f"result {i} is off by {largest(g - e):.3g}, allowed is {allowed:.3g}"


def with_poisoned_memory(body: Callable[..., Any]) -> Callable[..., Any]:
    """The body, whose new arrays are full of NaN. What it leaves out would otherwise be what the memory held before:
    very often the right result, from the call that was made to compare with."""
    empty, empty_like = np.empty, np.empty_like

    def poisoned(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    def call(*arguments: Any) -> Any:
        with (
            patch.object(np, "empty", lambda *given, **options: poisoned(empty(*given, **options))),
            patch.object(np, "empty_like", lambda *given, **options: poisoned(empty_like(*given, **options))),
        ):
            return body(*arguments)

    return call


@contextlib.contextmanager
def around_bodies(wrapped: Callable[..., Any]) -> Iterator[None]:
    """Inside the block `wrapped(body, *arguments)` runs in the place of every fast body, in poisoned memory."""
    native_body = numpy_backend.native_body

    def found(kernel: str, required: bool = False) -> Callable[..., Any] | None:
        body = native_body(kernel, required)
        return None if body is None else lambda *arguments: wrapped(with_poisoned_memory(body), *arguments)

    with patch.object(numpy_backend, "native_body", found):
        yield


FEW = 40  # examples


class Reached:
    """Counts how many examples came to the fast body. An example that it declines, or that the dispatcher gives to the
    reference, compares the reference with itself: it is right, and shows nothing."""

    def __init__(self) -> None:
        self.examples = self.reached = 0

    def results(self, row: KernelRow, arguments: list[Any]) -> list[np.ndarray]:
        """What the kernel returns and writes, by its fast body where that takes the arguments."""
        taken = []

        def counted(body: Callable[..., Any], *given: Any) -> Any:
            returned = body(*given)
            taken.append(returned is not NotImplemented)
            return returned

        with around_bodies(counted):
            got = results(row, "cython", arguments)
        self.examples += 1
        self.reached += any(taken)
        return got

    def assert_half(self) -> None:
        """A quarter when there are few examples (`pytest --fast`): chance alone may leave fewer than half."""
        wanted = self.examples / (2 if self.examples >= FEW else 4)
        assert self.reached >= wanted > 0, f"{self.reached} of {self.examples} examples came to the body"
