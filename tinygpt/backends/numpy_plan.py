"""A plan: the calls on NumPy arrays that some work makes, recorded once and replayed without the Python around them.

    tape = Tape([inputs, targets], first_rng_stream)
    with tape.recording(): loss = work()              # runs as usual, and notes each call of a kernel
    plan = tape.plan([loss, *gradients])              # the arrays that are wanted
    loss, *gradients = plan.run([inputs, targets], first_rng_stream)

A tenth of a small model's step is Python, which decides what to compute: it walks through modules, checks arguments,
picks bodies, builds a graph and walks back through it. For batches of one shape all of this ends in the same calls. A
plan is the list of these calls, as a CUDA graph is of launches (`cupy_graph.py`). Each call names the values that it
takes and those that it makes: a program without branches. So

- **arrays** that a call makes are new in each run, and freed after the last call that takes them: a run needs no more
  memory than the work itself. An array that no call has made is reallocated in each run if the first call that gets it
  writes to it; otherwise it is a constant of the plan, as the parameters are;
- **views** of an array are made again, with the same offset and strides;
- **inputs** and **RNG streams** are given to each run;
- **NumPy's own operations** are not seen, unless they are in a function that is `noted` (`recording.py`), nor are
  numbers that Python computes from results. They would be frozen in the plan. Only a comparison can reveal that:
  whoever makes a plan compares its first run, on other inputs, with the work itself
  (`tinygpt.training.step.planned_step`).
"""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..random import RngStream
from . import memory_of
from .recording import here

STREAM = 0  # where the number of the first RNG stream is among a plan's values


class Made(NamedTuple):
    """What a call makes. result: which of its results, None if there is only one. memory: what counts is the array that
    owns the result's memory."""

    result: int | None
    place: int
    memory: bool


class Call(NamedTuple):
    """A call: which values it takes, where its results go, and which values are not needed after it."""

    function: Callable[..., Any]
    take: Callable[[list[Any]], tuple[Any, ...]]
    made: tuple[Made, ...]
    over: tuple[int, ...]


class Plan:
    """Calls to replay. values: the constants, each at its place, and None for what a run makes."""

    def __init__(self, calls: list[Call], values: list[Any], inputs: Sequence[int], results: Sequence[int]) -> None:
        self.calls, self.values, self.inputs, self.results = calls, values, inputs, results

    def run(self, inputs: Sequence[np.ndarray], first_rng_stream: int, spoil: bool = False) -> list[Any]:
        """Replay the calls with other inputs, of the same shapes and dtypes. Returns the results, new arrays.

        spoil: fill what is allocated with NaN, so that a number nobody has written is noticed.
        """
        values = self.values.copy()
        values[STREAM] = first_rng_stream
        for place, array in zip(self.inputs, inputs, strict=True):
            values[place] = array
        with np.errstate(all="ignore"):  # as in `Function.apply`
            for function, take, made, over in self.calls:
                result = function(*take(values))
                assert result is not NotImplemented  # from a compiled body: the same arguments suited it once
                if spoil and function is np.empty:
                    result.view(np.uint8)[...] = 255
                for index, place, memory in made:
                    values[place] = result if index is None else result[index]
                    if memory:
                        values[place] = memory_of(values[place])
                for place in over:
                    values[place] = None
        return [values[place] for place in self.results]


class Tape:
    """Records one run of some work in this thread.

    inputs: what differs between runs, C-contiguous arrays that own their memory. constants: arrays that stay where they
    are, such as parameters, even if the first call that they are given to may write into its arguments.
    """

    def __init__(
        self, inputs: Sequence[np.ndarray], first_rng_stream: int, constants: Sequence[np.ndarray] = ()
    ) -> None:
        self.values: list[Any] = [None]
        self.calls: list[tuple[Callable[..., Any], list[int], list[Made]]] = []
        self.made: dict[int, int] = {}  # id of an array that owns its memory, or of a number -> place
        self.constants: dict[int, int] = {}  # id -> place
        self.lasting = {id(memory_of(array)) for array in constants}
        self.views: dict[Any, int] = {}  # (place of the array, how it is viewed) -> place
        self.held: list[Any] = []  # numbers that were made, and weak references to the arrays
        self.first_rng_stream = first_rng_stream
        self.inputs = [self._place_of_made(array) for array in inputs]

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Note the calls in the block."""
        previous, here.tape = here.tape, self
        try:
            yield
        finally:
            here.tape = previous

    def run(self, function: Callable[..., Any], args: Sequence[Any], writes: bool = False) -> Any:
        """Call `function` and note it as one call, whatever it calls itself. writes: as for `note`."""
        here.tape = None
        try:
            result = function(*args)
        finally:
            here.tape = self
        self.note(function, args, result, writes)
        return result

    def note(self, function: Callable[..., Any], args: Sequence[Any], result: Any, writes: bool = False) -> None:
        """Note a call that has just returned `result`. writes: it may have written into arrays that it was given."""
        taken = [self._taken(value, writes) for value in args]
        several = isinstance(result, (tuple, list))
        made = []
        for index, value in enumerate(result if several else (result,)):
            if isinstance(value, (np.ndarray, np.generic, float)):
                one = memory_of(value) if isinstance(value, np.ndarray) else value
                if id(one) not in self.made and id(one) not in self.lasting:
                    made.append(Made(index if several else None, self._place_of_made(one), one is not value))
        self.calls.append((function, taken, made))

    def plan(self, results: Sequence[np.ndarray]) -> Plan:
        """The plan of all calls so far. results: arrays that a run returns."""
        wanted = [self._taken(array, False) for array in results]
        last: dict[int, int] = {}  # place -> the last call that uses it
        for number, (_, taken, made) in enumerate(self.calls):
            last |= dict.fromkeys((*taken, *(one.place for one in made)), number)
        over: dict[int, list[int]] = {}
        for place in last.keys() - {*self.constants.values(), *wanted}:
            over.setdefault(last[place], []).append(place)
        calls = [
            Call(function, _taker(taken), tuple(made), tuple(over.get(number, ())))
            for number, (function, taken, made) in enumerate(self.calls)
        ]
        return Plan(calls, self.values, self.inputs, wanted)

    # Places ---------------------------------------------------------------------------------------

    def _new_place(self, value: Any = None) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _place_of_made(self, value: Any) -> int:
        """A new place, for an array or a number that has just been made."""
        return self._is_at(self._new_place(), value)

    def _is_at(self, place: int, value: Any) -> int:
        key = id(value)
        self.made[key] = place
        if isinstance(value, np.ndarray):  # once it is freed, another array may get its id
            self.held.append(weakref.ref(value, lambda _: self.made.pop(key, None)))
        else:
            self.held.append(value)
        return place

    def _constant(self, value: Any) -> int:
        if id(value) not in self.constants:
            self.constants[id(value)] = self._new_place(value)  # the place holds it, so that nothing else gets its id
        return self.constants[id(value)]

    def _own_call(self, function: Callable[..., Any], *taken: int) -> int:
        """Add a call that the work did not make, and return the place of its result."""
        place = self._new_place()
        self.calls.append((function, [*taken], [Made(None, place, False)]))
        return place

    def _taken(self, value: Any, writes: bool) -> int:
        """The place of an argument."""
        if isinstance(value, np.ndarray):
            return self._array_taken(value, writes)
        if type(value) is RngStream:
            return self._own_call(operator.add, STREAM, self._constant(int(value) - self.first_rng_stream))
        made = self.made.get(id(value)) if isinstance(value, (float, np.generic)) else None
        return self._constant(value) if made is None else made

    def _array_taken(self, array: np.ndarray, writes: bool) -> int:
        memory = memory_of(array)
        place = self.made.get(id(memory))
        if place is None:
            if not writes or id(memory) in self.lasting or id(memory) in self.constants:
                return self._constant(array)
            place = self._own_call(np.empty, self._constant(memory.shape), self._constant(memory.dtype))
            self._is_at(place, memory)
        if array is memory:
            return place
        offset = _address(array) - _address(memory)
        how = (place, array.shape, array.dtype, offset, array.strides)
        if how not in self.views:
            shape, dtype, at, strides = map(self._constant, how[1:])
            self.views[how] = self._own_call(np.ndarray, shape, dtype, place, at, strides)
        return self.views[how]


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _taker(places: Sequence[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """A function that picks the values at these places, as a tuple."""
    if len(places) == 1:
        return operator.itemgetter(slice(places[0], places[0] + 1))
    return operator.itemgetter(*places)
