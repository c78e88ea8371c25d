"""A plan (tinygpt/backends/numpy_plan.py) by itself: views, memory, numbers, and what it can't know."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.backends.numpy_plan import Plan, Tape
from tinygpt.backends.recording import here, noted
from tinygpt.kernel import Kernel
from tinygpt.random import Generator


@noted
def doubled(x: np.ndarray) -> np.ndarray:
    return x * 2


@noted
def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy, and a view of another one."""
    return x + 1, (x - 1).T


@noted
def total(x: np.ndarray) -> Any:
    return x.sum()


@noted
def add_into(x: np.ndarray, number: Any) -> None:
    x += number


def recorded(work: Callable[[np.ndarray], np.ndarray], x: np.ndarray, *constants: np.ndarray) -> Plan:
    tape = Tape([x], 0, constants)
    with tape.recording():
        result = work(x)
    assert here.tape is None
    return tape.plan([result])


def ran(plan: Plan, x: np.ndarray, stream: int = 0) -> np.ndarray:
    (result,) = plan.run([x], stream, spoil=True)
    return result


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 9, (4, 6)).astype(np.float32)


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itself": lambda x: x, "reshaped": lambda x: x.reshape(-1, 2), "transposed": lambda x: x.T,
    "backwards": lambda x: x[::-1, ::-2], "columns": lambda x: x[:, 1:4], "a row": lambda x: x[2],
    "broadcast": lambda x: np.broadcast_to(x[:1], (3, x.shape[1])), "other type": lambda x: x.view(np.int32),
    "of a view": lambda x: x.reshape(2, -1)[1:].T[3:],
}  # fmt: skip


@given(views=st.lists(st.sampled_from(sorted(VIEWS)), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_views_are_made_again(views: list[str], seed: int) -> None:
    """Of the input and of results, of several results, of one of them that is a view itself."""

    def work(x: np.ndarray) -> np.ndarray:
        for name in views:
            x = doubled(VIEWS[name](x) if x.ndim == 2 and min(x.shape) > 3 else x)
        first, second = split(x)
        add_into(first, total(second[..., :1]))
        return doubled(first)

    plan = recorded(work, numbers(seed))
    assert ran(plan, numbers(seed + 100)).tobytes() == work(numbers(seed + 100)).tobytes()
    assert ran(plan, numbers(seed)).tobytes() == work(numbers(seed)).tobytes()  # nothing is left of the run before


@pytest.mark.slow
def test_arrays_are_freed_after_the_last_call_that_takes_them() -> None:
    made: list[weakref.ref[np.ndarray]] = []

    @noted
    def large(x: np.ndarray) -> np.ndarray:
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        result = x + 1
        made.append(weakref.ref(result))
        return result

    alive: list[int] = []
    plan = recorded(lambda x: large(large(large(large(x.T)[:2]))), numbers(0))
    made.clear()
    alive.clear()
    kept = ran(plan, numbers(1))
    assert alive == [0, 1, 1, 1]  # the one that the call takes
    assert [reference() is not None for reference in made] == [False, False, False, True]
    assert made[-1]() is kept


def test_constants_stay_and_are_read_in_each_run() -> None:
    weight = np.ones((4, 6), np.float32)
    product = noted(np.multiply)
    plan = recorded(lambda x: product(x, weight), numbers(0), weight)
    weight *= 3
    assert np.array_equal(ran(plan, numbers(1)), numbers(1) * 3)


def test_random_streams_are_counted_on() -> None:
    draw = noted(lambda x, seed, stream: x + seed + stream)
    generator = Generator(100)

    def work(x: np.ndarray) -> np.ndarray:
        first = draw(x, *generator.next_key())
        return draw(first, *generator.next_key())

    plan = recorded(work, numbers(0))
    assert np.array_equal(ran(plan, numbers(1), stream=10), numbers(1) + 200 + 10 + 11)


@pytest.mark.parametrize("writes", [False, True])
def test_an_array_made_outside_of_all_calls(writes: bool) -> None:
    """To be written to, it is allocated anew. Otherwise it is what it was, which a comparison on other inputs shows."""

    def work(x: np.ndarray) -> np.ndarray:
        place = np.zeros_like(x) if writes else x + 5
        if writes:
            here.tape.note(np.copyto, (place, x), np.copyto(place, x), True)
        return doubled(place)

    plan = recorded(work, numbers(0))
    expected = numbers(1) * 2 if writes else (numbers(0) + 5) * 2
    assert np.array_equal(ran(plan, numbers(1)), expected)


def test_what_a_kernel_without_a_compiled_body_writes_to_is_allocated_anew() -> None:
    """As in products of matrices where NumPy's library does not run on our threads."""

    def product_without_body(x: np.ndarray, out: np.ndarray) -> np.ndarray:
        return np.multiply(x, 3, out=out)

    product = Kernel(product_without_body, in_place=True)
    plan = recorded(lambda x: product(x, np.empty_like(x)), numbers(0))
    first, second = ran(plan, numbers(1)), ran(plan, numbers(2))
    assert np.array_equal(first, numbers(1) * 3)  # which the second run must not overwrite
    assert np.array_equal(second, numbers(2) * 3)


def test_what_nobody_has_written_is_spoilt() -> None:
    def work(x: np.ndarray) -> np.ndarray:
        sums = np.zeros_like(x)  # not noted: a plan does not know that it begins with zeros
        here.tape.note(add_into, (sums, 1.0), add_into.__wrapped__(sums, 1.0), True)  # type: ignore[attr-defined]
        return doubled(sums)

    assert np.isnan(ran(recorded(work, numbers(0)), numbers(1))).all()


def test_an_error_ends_the_recording() -> None:
    @noted
    def fails(x: np.ndarray) -> np.ndarray:
        raise ValueError("in a call")

    with pytest.raises(ValueError, match="in a call"):
        recorded(fails, numbers(0))
    assert here.tape is None
