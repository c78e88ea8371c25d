"""The backward pass: from a result back through the graph to its leaves.

Nodes are visited in reverse order of creation, which is always a topological order. This needs no recursion, so a graph
may be as deep as memory allows. Each node's saved arrays are freed after its backward.

If a result was used several times, its gradients are summed. A gradient array that nothing else references is added to
in place, and the operation that receives it may overwrite it; `owned` records these arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends
from .backends.precision import is_16_bit, is_floating
from .backends.recording import noted
from .changes import check_unchanged, memory_of
from .errors import DtypeError, GraphFreedError, ShapeError, UsageError
from .graph import as_array, check_finite, grad_lock, mode
from .typing import Array, DType

if TYPE_CHECKING:
    from .function import Function
    from .tensor import Tensor


def backward_pass(root: Function, output: int, grad: Array, retain_graph: bool) -> None:
    """Backpropagate `grad`, the gradient of an output of `root`, and add to the `.grad` of every leaf it depends on."""
    nodes = _reachable(root)
    for node in nodes:
        if node.kept is None:
            raise GraphFreedError(
                f"backward() reached {node.name}, whose saved arrays were freed by an earlier backward(): "
                "run the forward pass again, or call the earlier backward(retain_graph=True)"
            )
    check_unchanged(nodes)
    pending: dict[Function, list[Array | None]] = {root: [None] * len(root.outputs)}
    pending[root][output] = grad
    owned: set[tuple[Function, int]] = set()  # slots whose array nothing else references: it may be modified
    see = mode.see_gradients
    ready = _Uses(nodes, mode.leaf_ready) if mode.leaf_ready is not None else None
    with np.errstate(all="ignore"):
        while nodes:
            node = nodes.pop()
            received = pending.pop(node, None)
            if received is not None:
                if see is not None:
                    see(node, received)
                _step(node, received, pending, owned)
            if ready is not None:
                ready.after(node)
            if not retain_graph:
                node.free()


class _Uses:
    """Counts the uses of each leaf in a graph, and reports when the last of them has contributed its gradient."""

    def __init__(self, nodes: list[Function], tell: Callable[[Any], None]) -> None:
        self.tell = tell
        leaves = (parent for node in nodes for parent in node.parents if parent is not None and parent.is_leaf)
        self.left = Counter(map(id, leaves))

    def after(self, node: Function) -> None:
        """Call after each node's backward. A node that received no gradient counts too: it contributes nothing."""
        for parent in node.parents:
            if parent is not None and parent.is_leaf:
                self.left[id(parent)] -= 1
                if not self.left[id(parent)]:
                    self.tell(parent)


def _reachable(root: Function) -> list[Function]:
    """Every node that `root` depends on, in order of creation: the backward pass pops from the end."""
    seen = {root}
    stack = [root]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and not parent.is_leaf and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda node: node.order)


def _step(
    node: Function,
    received: list[Array | None],
    pending: dict[Function, list[Array | None]],
    owned: set[tuple[Function, int]],
) -> None:
    """Run one node's backward and pass the gradients to its parents (nodes and leaves)."""
    mine = [(node, i) in owned for i, grad in enumerate(received) if grad is not None]
    grads = _gradients(node, received, owned=False not in mine)
    holds = [*grads, *(() if node.may_overwrite else received)]  # an array that occurs once here is not shared
    held = [id(memory_of(array)) for array in holds if array is not None]
    for i, (parent, output, grad) in enumerate(zip(node.parents, node.parent_outputs, grads, strict=True)):
        if parent is None:
            continue
        if grad is None and (node.may_ignore_inputs or (len(received) > 1 and any(g is None for g in received))):
            continue
        shape = parent.shape if parent.is_leaf else parent.outputs[output][0]
        if grad is None or grad.shape != shape:
            raise _wrong_gradient(node, i, grad, shape)
        alone = held.count(id(memory_of(grad))) == 1
        if parent.is_leaf:
            accumulate(parent, grad, fresh=alone and (grad.base is None or is_room_of(parent, grad)))
        else:
            _add_pending(parent, output, grad, alone, pending, owned)


def _gradients(node: Function, received: list[Array | None], owned: bool) -> tuple[Array | None, ...]:
    """Call the node's backward: one gradient for each input. owned: nothing else references the received arrays."""
    unused = [i for i, grad in enumerate(received) if grad is None] if len(received) > 1 else []
    if unused and node.zeros_for_unused:
        xp = backends.array_module(next(grad for grad in received if grad is not None))
        for i in unused:
            received[i] = xp.zeros(*node.outputs[i])
    node.may_overwrite = owned
    try:
        result = node.backward(*received)
    except (TypeError, AttributeError) as error:
        if unused and not node.zeros_for_unused:
            raise UsageError(
                f"{node.name}.backward failed ({error}): it got None for output {unused[0]}, which was not used; "
                "handle None, or set zeros_for_unused = True in the class"
            ) from error
        raise
    grads = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if len(grads) != len(node.parents):
        raise UsageError(f"{node.name}.backward returned {len(grads)} gradients for {len(node.parents)} inputs")
    grads = tuple([grad if type(grad) is np.ndarray else _as_gradient(node, i, grad) for i, grad in enumerate(grads)])
    if mode.detect_anomaly:  # a gradient that the leaf already had was not computed by this operation
        made = [
            grad for grad, parent in zip(grads, node.parents, strict=True) if grad is not getattr(parent, "grad", 0)
        ]
        check_finite(node.name, "backward", made, received)
    return grads


def _as_gradient(node: Function, i: int, grad: object) -> Array | None:
    """Convert what a backward returned for input i, if not a NumPy array: numbers become arrays. Raises DtypeError."""
    if isinstance(grad, (bool, int, float, np.generic)):
        return np.asarray(grad)
    if grad is None or backends.is_array(grad):
        return grad
    raise DtypeError(
        f"{node.name}.backward: the gradient of input {i} must be an array, not {type(grad).__name__}: a backward "
        "returns one array for each input, or None"
    )


def _wrong_gradient(node: Function, i: int, grad: Array | None, shape: tuple[int, ...]) -> UsageError:
    """The error for a gradient that is missing or whose shape differs from its input's."""
    if grad is None:
        return UsageError(f"{node.name}.backward returned no gradient for input {i}, which needs one")
    return ShapeError(
        f"{node.name}.backward: gradient of shape {grad.shape} for input {i} of shape {shape}: they must be equal, and "
        "the .data of an input must not be replaced by another shape before backward()"
    )


def _add_pending(
    parent: Function,
    output: int,
    grad: Array,
    alone: bool,
    pending: dict[Function, list[Array | None]],
    owned: set[tuple[Function, int]],
) -> None:
    """Add a gradient to those that a node will receive. alone: nothing else references this array."""
    dtype = parent.outputs[output][1]
    if grad.dtype != dtype and not (is_16_bit(dtype) and grad.dtype == np.float32):  # more precision is welcome
        grad, alone = grad.astype(dtype), True
    slots = pending.setdefault(parent, [None] * len(parent.outputs))
    present = slots[output]
    if present is None:
        slots[output] = grad
        if alone and grad.flags.c_contiguous and getattr(grad.flags, "writeable", True):  # not a broadcast view
            owned.add((parent, output))
    elif (parent, output) in owned and present.dtype == grad.dtype:
        add_into(present, grad)
    else:
        slots[output] = added(present, grad)
        owned.add((parent, output))


def is_room_of(leaf: Tensor, grad: Array) -> bool:
    """Whether this gradient was made in the memory reserved for it (`Function.gradient_room`)."""
    return mode.gradient_room is not None and mode.gradient_room(leaf) is grad


def accumulate(leaf: Tensor, grad: Array, fresh: bool) -> None:
    """Add to a leaf's gradient. fresh: nothing else references this array, so it can be stored without a copy."""
    with grad_lock:
        if leaf.grad is grad:
            return  # the operation's backward has already added to it
        present = leaf.present_grad("backward()", writable=True)
        if present is not None:
            add_into(present, grad)
        elif fresh and grad.dtype == leaf.dtype and grad.flags.c_contiguous:
            leaf.grad = grad
        elif not is_floating(leaf.dtype):  # the user has set x.requires_grad = True
            raise DtypeError(f"backward(): a leaf of {leaf.dtype} can't hold a gradient: make it float32 or float64")
        else:
            leaf.grad = copied(grad, leaf.dtype)


@noted
def add_into(present: Array, grad: Array) -> None:
    present += grad


@noted
def added(a: Array, b: Array) -> Array:
    return as_array(a + b)


@noted
def copied(array: Array, dtype: DType) -> Array:
    return backends.array_module(array).array(array, dtype=dtype, order="C")
