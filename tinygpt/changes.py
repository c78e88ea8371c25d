"""Detect arrays that were modified between the forward and the backward pass.

An operation saves its arrays for the backward pass without copying them. If one is modified before that pass, the
gradients are silently wrong. So everything in tinygpt that modifies a parameter in place (optimizers,
`load_state_dict`, `p -= ...`) calls `note_change`, and the backward pass calls `check_unchanged`.

Graph nodes and changes take their numbers from the same clock, so comparing the numbers tells whether a change came
after a node. The forward pass has no extra work, and as long as nothing was changed since the oldest node of a graph,
as in ordinary training, the check is one comparison.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .backends import is_array, memory_of
from .errors import UsageError

if TYPE_CHECKING:
    from .function import Function

clock = itertools.count(1)
_changes: dict[int, tuple[weakref.ref[Any], int]] = {}  # id of an array that owns its memory -> (array, time of change)
_last_change = 0


def note_change(arrays: Iterable[Any]) -> None:
    """Record that these arrays have just been modified."""
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


def time_of_change(array: Any) -> int:
    """When `note_change` last recorded this array or another view of its memory; 0 if never."""
    memory = memory_of(array)
    reference, when = _changes.get(id(memory), (None, 0))
    return when if reference is not None and reference() is memory else 0


def _forget(key: int, reference: weakref.ref[Any]) -> None:
    """Called when an array is freed, since a new one may get the same id."""
    if key in _changes and _changes[key][0] is reference:
        del _changes[key]


def check_unchanged(nodes: Sequence[Function]) -> None:
    """Raise UsageError if an array saved by one of these nodes has been modified since. nodes: oldest first.

    A change to one view of an array counts for all views of the same memory.
    """
    if nodes[0].order > _last_change:
        return
    for node in nodes:
        for array in node.kept:
            if not is_array(array):
                continue
            if time_of_change(array) > node.order:
                raise UsageError(
                    f"backward() reached {node.name}, which saved an array of shape {array.shape} that was changed "
                    "since, by optimizer.step(), load_state_dict() or in place: change it after the last backward(), "
                    "or run the forward pass again"
                )
