"""The graph behind a tensor, as plain facts: operations, shapes, and what each saves for the backward pass.

`facts_of(tensor)` reads the graph as it is now. `record_gradients()` reads it while `backward()` walks through it, so
it also has the norm of each gradient, and `backward()` may free the graph on its way.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..backends import array_module, is_array
from ..backends.precision import upcast
from ..changes import memory_of
from ..errors import DtypeError, GraphFreedError, UsageError
from ..function import Function, Recomputed
from ..graph import mode
from ..tensor import Tensor
from ..typing import Array


class Kept(NamedTuple):
    """One array that an operation saves. memory, memory_bytes: of the array that it is a view of, or its own."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int
    memory: int
    memory_bytes: int
    recomputed_by: str = ""  # it keeps no array, but the operation that computes it again


@dataclass
class Facts:
    """An operation, or a leaf: a tensor that no operation made."""

    name: str
    outputs: list[tuple[tuple[int, ...], str]]  # shape, dtype
    inputs: list[int] = field(default_factory=list)  # of the inputs that need a gradient: their keys
    kept: list[Kept] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)  # of the gradient of each output, where it is known
    leaf: Tensor | None = None
    freed: bool = False

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.kept)


@dataclass
class Graph:
    """Facts by key, inputs before the operations that use them. left_out: the number of operations left out."""

    facts: dict[int, Facts]
    left_out: int = 0

    def distinct_bytes(self) -> int:
        """The memory that is saved, counting each array once, without that of the leaves, which exists anyway.

        A view of a part keeps the whole array alive.
        """
        leaves = {id(memory_of(facts.leaf.data)) for facts in self.facts.values() if facts.leaf is not None}
        sizes = {array.memory: array.memory_bytes for facts in self.facts.values() for array in facts.kept}
        return sum(size for memory, size in sizes.items() if memory not in leaves)


class Recording:
    """What `record_gradients` saw; `tinygpt.draw` draws it."""

    def __init__(self) -> None:
        self._facts: dict[int, Facts] = {}  # from the results backwards
        self._nodes: list[Function] = []  # kept alive, so that no other node gets the same id

    @property
    def graph(self) -> Graph:
        """The graphs of all backward passes so far."""
        return Graph({key: self._facts[key] for key in reversed(self._facts)})

    def see(self, node: Function, gradients: list[Array | None]) -> None:
        """Called by the backward pass, before the node is freed."""
        self._nodes.append(node)
        self._put(id(node), described(node))
        self._facts[id(node)].norms = [None if dy is None else norm(dy) for dy in gradients]
        for parent in node.parents:
            if parent is not None and parent.is_leaf:
                self._put(id(parent), leaf_facts(parent))

    def _put(self, key: int, facts: Facts) -> None:
        """Add it at the end, even if another pass added it before: inputs come after what is made from them."""
        self._facts.pop(key, None)
        self._facts[key] = facts


@contextlib.contextmanager
def record_gradients() -> Iterator[Recording]:
    """Inside the block, each `backward()` of this thread records the norm of every gradient.

        with tg.interpret.record_gradients() as record:
            loss.backward()
        tg.draw(record)

    On a GPU each norm waits for the result, so a backward pass takes longer.
    """
    recording, previous = Recording(), mode.see_gradients
    mode.see_gradients = recording.see
    try:
        yield recording
    finally:
        mode.see_gradients = previous


def norm(array: Array) -> float:
    """The Euclidean norm, summed in float64."""
    wide = upcast(array).astype(np.float64)
    return float(array_module(wide).sqrt((wide * wide).sum()))


def described(node: Function) -> Facts:
    if node.kept is None:
        return Facts(node.name, [], freed=True)
    outputs = [(tuple(shape), dtype.name) for shape, dtype in node.outputs]
    inputs = [id(parent) for parent in node.parents if parent is not None]
    return Facts(node.name, outputs, inputs, list(_kept(node)), [None] * len(outputs))


def leaf_facts(leaf: Tensor) -> Facts:
    return Facts("", [(leaf.shape, leaf.dtype.name)], leaf=leaf)


def _kept(node: Function) -> Iterator[Kept]:
    """The arrays that a node holds: those that it saved, and any others it has for its backward."""
    for array in node.kept:
        if isinstance(array, Recomputed):
            shape, dtype = array.node.outputs[array.output]
            yield Kept(tuple(shape), dtype.name, 0, 0, 0, array.node.name)
    for array in _arrays(list(vars(node).values())):
        memory = memory_of(array)
        size = min(int(array.nbytes), int(memory.nbytes))  # the numbers of a broadcast view are fewer than its elements
        yield Kept(tuple(array.shape), array.dtype.name, size, id(memory), int(memory.nbytes))


def _arrays(value: Any) -> Iterator[Any]:
    if is_array(value):
        yield value
    elif isinstance(value, (tuple, list)) and not isinstance(value, Recomputed):
        for item in value:
            yield from _arrays(item)


def facts_of(tensor: Tensor, most: int) -> Graph:
    """The graph behind a tensor: its `most` latest operations, and their leaves. Raises UsageError."""
    if not isinstance(tensor, Tensor):
        raise DtypeError(f"draw: expected a tensor or what record_gradients() made, not {type(tensor).__name__}")
    if tensor.node is None and not tensor.requires_grad:
        raise UsageError(
            "draw: there is no graph behind this tensor: nothing that it was computed from has requires_grad=True, or "
            "it was computed under no_grad() or detached"
        )
    if tensor.node is not None and tensor.node.kept is None:
        raise GraphFreedError(
            "draw: backward() has freed the graph behind this tensor: draw it before, or after "
            "backward(retain_graph=True), or run backward() inside tinygpt.interpret.record_gradients() and draw that"
        )
    found: dict[int, Facts] = {}
    start: Any = tensor if tensor.node is None else tensor.node
    waiting, seen = [(-_order(start), id(start), start)], {id(start)}
    operations = left_out = 0
    while waiting:  # the latest first: every operation comes before its inputs
        _, key, item = heapq.heappop(waiting)
        operations += not item.is_leaf
        drawn = item.is_leaf or operations <= most
        if drawn:
            found[key] = leaf_facts(item) if item.is_leaf else described(item)
        left_out += not drawn
        for parent in () if item.is_leaf else item.parents:
            if parent is not None and id(parent) not in seen and (drawn or not parent.is_leaf):
                seen.add(id(parent))
                heapq.heappush(waiting, (-_order(parent), id(parent), parent))
    return Graph({key: found[key] for key in reversed(found)}, left_out)


def _order(item: Any) -> int:
    return -1 if item.is_leaf else item.order


def names_of(names: Any) -> dict[int, str]:
    """id of a leaf -> its name, from a module or from a mapping of names to tensors. Raises DtypeError."""
    pairs: Any = names
    if names is None:
        return {}
    if hasattr(names, "named_parameters"):
        pairs = dict(names.named_parameters())
    if not isinstance(pairs, Mapping) or not all(isinstance(tensor, Tensor) for tensor in pairs.values()):
        raise DtypeError(f"draw: names must be a module or a dict of name -> tensor, not {type(names).__name__}")
    return {id(tensor): str(name) for name, tensor in pairs.items()}
