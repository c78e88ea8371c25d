"""Wrong results, without wrong code: one tile of one result of a body, times 1.001; of integers, one more.

A body is wrapped at the call, so that what is judged went the way of every result: through the dispatcher, which may
have taken the reference instead. The body itself runs once for each example; its results are kept and handed out anew,
each time with another tile that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ops.kernel_rule import is_array

FACTOR, TILE = 1.001, 64
PLACES = ("first", "middle", "last")


def tile_of(size: int, place: str) -> slice:
    """Up to 64 elements, a third of all at most, so that the three places differ."""
    length = max(1, min(TILE, size // 3))
    start = {"first": 0, "middle": (size - length) // 2, "last": size - length}[place]
    return slice(start, start + length)


def spoil(value: Any, place: str) -> Any:
    """The array with a wrong tile, written in place if it has axes; a number is wrong as a whole."""
    if np.ndim(value) == 0:
        return value * FACTOR
    flat, tile = value.flat, tile_of(value.size, place)
    flat[tile] = flat[tile] + 1 if value.dtype.kind in "iu" else flat[tile] * FACTOR
    return value


class Planter:
    """Stands around a body, as `around_bodies` calls it. `fault` is the number of the result to spoil, in the order in
    which `results` of `kernel_rule.py` lists them (what is returned, then what is written), and the place."""

    def __init__(self, writes: tuple[int, ...], fault: tuple[int, str] | None = None) -> None:
        self.writes, self.fault = writes, fault
        self.kept: tuple[Any, list[Any]] | None = None  # what was returned, and what was written

    def __call__(self, body: Callable[..., Any], *arguments: Any) -> Any:
        written = [arguments[i] for i in self.writes]
        if self.kept is None:
            returned = body(*arguments)
            if returned is NotImplemented:
                return NotImplemented
            several = returned if isinstance(returned, tuple) else (returned,)
            # An array that is written and returned is one array, and is wrong in both.
            aliases = [next((j for j, w in enumerate(written) if value is w), None) for value in several]
            kept = [value if alias is None else Written(alias) for value, alias in zip(several, aliases, strict=True)]
            self.kept = tuple(kept) if isinstance(returned, tuple) else kept[0], [array.copy() for array in written]
        returned, contents = self.kept
        for array, values in zip(written, contents, strict=True):
            array[...] = values
        several = returned if isinstance(returned, tuple) else (returned,)
        values = [written[v.number] if isinstance(v, Written) else v.copy() if is_array(v) else v for v in several]
        self.spoil_one(values, written)
        return tuple(values) if isinstance(returned, tuple) else values[0]

    def spoil_one(self, returned: list[Any], written: list[Any]) -> None:
        if self.fault is None:
            return
        number, place = self.fault
        given = [i for i, value in enumerate(returned) if value is not None]
        if number < len(given):
            returned[given[number]] = spoil(returned[given[number]], place)
        elif number < len(given) + len(written):
            spoil(written[number - len(given)], place)


@dataclass(frozen=True)
class Written:
    """In the place of a returned array: the number of the written one that it is."""

    number: int
