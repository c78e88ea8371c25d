"""What a row of the tables in `cases/__init__.py` is, and how hypothesis draws inputs: shapes, memory layouts, values.

The values come from a seed that hypothesis draws, so a failing example is short to print and quick to make.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tinygpt.function import Function
from tinygpt.ops.packed import Matrix

# Sizes around the widths of vector registers, where loops over tails go wrong.
reduced = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 33])
leading = st.sampled_from([1, 2, 3, 5, 0])  # not 0 first, which hypothesis draws most often
small = st.sampled_from([1, 2, 3, 4])
IGNORE = -100  # the target that does not count
LAYOUTS = ("C", "F", "permuted", "strided", "negative", "broadcast", "read-only")
seeds = st.integers(0, 2**32 - 1)
one_in_eight = st.sampled_from([False, False, False, True, False, False, False, False])

# Values ------------------------------------------------------------------------------------------


def options_on(options: Mapping[str, Any], put: Callable[[Any], Any]) -> dict[str, Any]:
    """The options of an example, with the arrays of their packed matrices where `put` puts an array."""
    return {
        name: Matrix(*[put(part) if isinstance(part, np.ndarray) else part for part in value])
        if isinstance(value, Matrix)
        else value
        for name, value in options.items()
    }


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape))


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """From 0.5 to 2: for log, sqrt, powers."""
    return np.asarray(rng.uniform(0.5, 2.0, shape))


def away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of either sign, 0.2 or more from zero: for divisors and for relu."""
    return np.asarray(rng.uniform(0.2, 2.0, shape) * rng.choice([-1.0, 1.0], shape))


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """No two within 0.05 of each other: for max."""
    size = int(np.prod(shape))
    return (rng.permutation(size) * 0.1 + rng.uniform(-0.025, 0.025, size)).reshape(shape)


def fractions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """From 0 to 1, both ends included."""
    drawn = rng.uniform(-0.3, 1.3, shape)
    return np.asarray(np.clip(drawn, 0.0, 1.0))


def integers_below(high: int) -> Callable[..., np.ndarray]:
    """Repeats are likely, and 0 and high - 1 are among them as soon as there is room."""

    def values(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = np.asarray(rng.integers(0, high, shape))
        flat = drawn.reshape(-1)
        flat[:1], flat[-1:] = 0, high - 1
        return rng.permutation(flat).reshape(shape)

    return values


def targets_below(V: int) -> Callable[..., np.ndarray]:
    """Ids with a quarter of them ignored, the first never."""

    def values(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = integers_below(V)(rng, shape)
        ignored = np.asarray(rng.random(shape) < 0.25)
        ignored.reshape(-1)[:1] = False
        return np.where(ignored, IGNORE, drawn)

    return values


# Arrays ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """An array still to be made: what is in it and how it lies in memory."""

    shape: tuple[int, ...]
    layout: str = "C"
    seed: int = 0
    values: Callable[..., np.ndarray] = normal

    def make(self, dtype: Any = np.float64) -> np.ndarray:
        """Integers and booleans keep their dtype; floating-point values are rounded to `dtype`."""
        array = self.values(np.random.default_rng(self.seed), self.shape)
        if array.dtype.kind == "f":
            array = array.astype(dtype)
        return lay_out(array, self.layout)


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same values in memory of another layout ("broadcast": the first slice everywhere; "apart": contiguous along
    the last axis only, like a head in an array that holds q, k and v of all heads)."""
    if array.ndim == 0 and layout != "read-only":
        return array
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "permuted":
        axes = np.roll(np.arange(array.ndim), 1)
        return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
    if layout == "strided":
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)
        wide[..., 1::2] = array
        return wide[..., 1::2]
    if layout == "apart":
        axes = (*range(array.ndim - 1)[::-1], array.ndim - 1)
        wide = np.zeros((*array.shape[:-1][::-1], array.shape[-1] + 1), array.dtype).transpose(axes)[..., 1:]
        wide[...] = array
        return wide
    if layout == "negative":
        backwards = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[backwards])[backwards]
    if layout == "broadcast":
        return np.broadcast_to(array[:1], array.shape) if array.size else array
    if layout == "read-only":
        array.flags.writeable = False
    return array


def inputs(shape: Any, values: Callable[..., np.ndarray] = normal) -> st.SearchStrategy[Input]:
    """Inputs of this shape in every layout; `distinct` ones are never broadcast, which would repeat them."""
    fitting = [layout for layout in LAYOUTS if values is not distinct or layout != "broadcast"]
    return st.builds(Input, st.just(tuple(shape)), st.sampled_from(fitting), seeds, st.just(values))


@dataclass(frozen=True)
class Example:
    """Arguments of one call: arrays still to be made (for a kernel also plain values), then the options."""

    arrays: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, dtype: Any = np.float64) -> list[Any]:
        return [array.make(dtype) if isinstance(array, Input) else array for array in self.arrays]


def mostly_contiguous(examples: st.SearchStrategy[Example]) -> st.SearchStrategy[Example]:
    """The same examples, seven of eight with all arrays contiguous: others go to the reference where the arrays can't
    be copied first, because the kernel writes into them."""

    def contiguous(array: Any) -> Any:
        is_other = isinstance(array, Input) and array.layout not in ("C", "read-only")
        return replace(array, layout="C") if is_other else array

    def laid_out(example: Example, anyhow: bool) -> Example:
        return example if anyhow else Example(tuple(map(contiguous, example.arrays)), example.options)

    return st.builds(laid_out, examples, one_in_eight)


@dataclass(frozen=True)
class Row:
    """An operation: function(*tensors, **options) for the arguments that `examples` draws.

    nodes: the classes of graph nodes it is made of. composed: the oracle, called in the same way.
    takes_nan: a first input full of NaN must give a result with a NaN in it.
    graph: proposes operands for a step of a random graph; see `random_graph_operations.py`.
    torch: the same by PyTorch, called as torch(module, *tensors, **options), for what `examples` and `graph` draw.
    numerics: shapes of arrays on which it is held to the rule of `extremes.py`.
    refused: calls with a mistake, the error that each gets, and words of its sentence.
    """

    name: str
    function: Callable[..., Any]
    examples: st.SearchStrategy[Example]
    nodes: tuple[type[Function], ...]
    composed: Callable[..., Any] | None = None
    takes_nan: bool = True
    graph: Callable[[Any], Any] | None = None
    torch: Callable[..., Any] | None = None
    numerics: tuple[tuple[int, ...], ...] = ()
    refused: Sequence[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = ()


@dataclass(frozen=True)
class KernelRow:
    """A kernel, by name, and how to draw its arguments, all of them in order.

    writes: the positions of arguments that the kernel writes to. They count as results, and must be drawn writable.
    kernel: what is called; None means the registered kernel of this name.
    declines: whether the compiled body leaves all arrays of this dtype to the reference, on the level that is in use.
    large: for a compiled body, examples that cross its tiles, chunks and blocks, and are work for several threads.
    wide: for a CUDA body, how to draw arguments of several warps and several blocks, beside those of `examples`.
    """

    name: str
    examples: st.SearchStrategy[Example]
    writes: tuple[int, ...] = ()
    kernel: Any = None
    declines: Callable[[Any], bool] = lambda dtype: False
    large: Sequence[Example] = ()
    wide: st.SearchStrategy[Example] | None = None


# Examples that a seed draws, of which the last is taken: the first is the simplest whatever the seed, and the second is
# made to differ from it as early as it can, so of many strategies it is nearly always the same one.
EACH = 4


def some_examples(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """The same `count` examples (fewer if it has fewer) at each call: the simplest, and others drawn independently.

    Each has a seed of its own: of the examples of one seed most are made from one another, with the same sizes.
    """
    found = drawn_with(0, strategy)
    if len(found) < EACH:  # there are no others
        return list(found[:count])
    return [found[0], *(drawn_with(number, strategy)[-1] for number in range(count - 1))]


@functools.cache
def drawn_with(number: int, strategy: st.SearchStrategy[Any]) -> list[Any]:
    """The first EACH examples of a seed, or all that there are."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=EACH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found
