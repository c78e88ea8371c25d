"""Arrays that were written into between the forward and the backward pass.

An operation saves arrays for its backward pass, not copies of them. Is one of them written into before that pass, then
its gradients are those of other numbers. Whatever in tinygpt writes into a parameter therefore says so (`note_change`:
optimizers, `load_state_dict`, `p -= ...`), and the backward pass compares (`check_unchanged`).

One clock numbers the nodes of the graph and times the changes, so a change is later than a node or it is not. Nothing
is counted in the forward pass, and while nothing was changed after the oldest node of a graph, which is how training
goes, the check is one comparison.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .backends import is_array
from .errors import UsageError

if TYPE_CHECKING:
    from .function import Function

clock = itertools.count(1)
_changes: dict[int, tuple[weakref.ref[Any], int]] = {}  # id of an array that owns memory -> (the array, when changed)
_last_change = 0


def memory_of(array: Any) -> Any:
    """The array that owns an array's elements: itself, or the one that it is a view of."""
    base = array.base
    while base is not None and is_array(base):
        array, base = base, base.base
    return array


def note_change(arrays: Iterable[Any]) -> None:
    """Remember that these arrays have been written into now."""
    global _last_change
    now = next(clock)
    for array in arrays:
        memory = memory_of(array)
        known = _changes.get(id(memory))
        if known is None or known[0]() is not memory:
            reference = weakref.ref(memory, functools.partial(_forget, id(memory)))
        else:
            reference = known[0]
        _changes[id(memory)] = (reference, now)
    _last_change = now


def _forget(key: int, reference: weakref.ref[Any]) -> None:
    """An array is no more, and another may get its id."""
    if key in _changes and _changes[key][0] is reference:
        del _changes[key]


def check_unchanged(nodes: Sequence[Function]) -> None:
    """Refuse a backward pass through these nodes, oldest first, when an array that one of them saved was written into
    after that. Arrays are compared by the memory that they are views of."""
    if nodes[0].order > _last_change:
        return
    for node in nodes:
        for array in node.kept:
            if not is_array(array):
                continue
            memory = memory_of(array)
            reference, when = _changes.get(id(memory), (None, 0))
            if when > node.order and reference is not None and reference() is memory:
                raise UsageError(
                    f"backward() comes to {node.name}, which saved an array of shape {array.shape} that was changed "
                    "since, by optimizer.step(), load_state_dict() or in place: change it after the last backward(), "
                    "or run the forward pass again"
                )
