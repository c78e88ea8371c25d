"""Function: one node of the graph.

An operation is a subclass with a `forward` on plain arrays and a `backward` that takes the gradient of
each output and returns the gradient of each input:

    class Exp(Function):
        def forward(self, x):
            y = xp.exp(x)
            self.save(y)              # all that backward needs
            return y

        def backward(self, dy):
            (y,) = self.saved
            return dy * y

    def exp(x): return Exp.apply(x)

The instance is its own context: whatever `forward` stores on `self` is there in `backward`. Arrays go through
`save`, so that the engine can free them as soon as the backward pass has used them.

The contract of `backward`: return one array per input (None where `self.needs[i]` is false or the input is not
differentiable) and keep no reference to it. Never write into the saved arrays. Never write into the arguments, unless
`self.may_overwrite` says that nobody else holds them. Returning `dy` itself or a view of it is fine: the engine makes
sure that arrays are not shared where they must not be. If only a few elements of a large gradient of a leaf change,
`backward` may add to that gradient in place (`self.present_gradient`) and return it.

If an operation has several outputs, some may never be used: `backward` gets None for these, and returns None for an
input that affects no other output. None is not the same as zeros: AdamW decays a parameter whose gradient is zeros, but
skips a parameter without a gradient. With `zeros_for_unused = True`, `backward` gets zeros instead.

An operation that can cheaply recompute an output from what it saved (LayerNorm, GELU) lists that output in
`recomputable` and defines `recompute`. An operation that saves such an output as its input then keeps a reference to
the node instead of the array, and `self.saved` recomputes it; not inside `graph.keep_outputs`, which is for machines
with memory to spare. An operation whose own output is recomputable always keeps its inputs as arrays, so recomputing
takes one step, however long the chain of such operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backends import array_module, different_backends, is_array, name_of
from .backends.precision import is_floating
from .changes import clock
from .errors import DtypeError, UsageError
from .graph import as_array, check_finite, grad_lock, mode
from .tensor import Tensor
from .typing import Array, DType, Shape


class Recomputed(NamedTuple):
    """Stands in for a saved array: the node that can recompute it, and which of that node's outputs it is."""

    node: Function
    output: int


class Function:
    """One application of an operation: its inputs' nodes, what it saved, and when it was created."""

    parents: tuple[Any, ...] = ()  # for each input: a Function, a leaf Tensor, or None
    parent_outputs: tuple[int, ...] = ()  # for each input: which output of its parent it is
    needs: tuple[bool, ...] = ()  # for each input: whether it needs a gradient
    kept: Any = ()  # what `save` was given, with a Recomputed in place of each recomputable array; None once freed
    recomputable: tuple[int, ...] = ()  # the outputs that `recompute` can return
    may_overwrite: bool = False  # in backward: nobody else holds the gradients given to it
    zeros_for_unused: bool = False  # in backward: the gradient of an unused output is zeros, not None
    may_ignore_inputs: bool = False  # whether backward may return None for an input that the result does not depend on
    outputs: tuple[tuple[Shape, DType], ...] = ()  # (shape, dtype) of each output
    order: int = -1
    is_leaf = False  # a parent is a node, like this one, or a leaf: a tensor that no operation made

    def forward(self, *arrays: Any, **options: Any) -> Any:
        """Plain arrays in, a plain array or a tuple of them out."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, *grads: Any) -> Any:
        """The gradient of each output in, the gradient of each input out."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def recompute(self, output: int) -> Array:
        """Recompute an output listed in `recomputable` from the saved arrays: a new array, bit-identical."""
        raise NotImplementedError(f"{type(self).__name__} defines no recompute")

    def save(self, *arrays: Any) -> None:
        """Keep these for the backward pass."""
        self.kept = arrays

    @property
    def saved(self) -> tuple[Any, ...]:
        """What `save` was given. Recomputed arrays are new on each access, and belong to the caller."""
        return tuple([a.node.recompute(a.output) if type(a) is Recomputed else a for a in self.kept])

    def drop_recomputable(self, inputs: tuple[Tensor, ...]) -> None:
        """Replace saved inputs that can be recomputed by a reference to the node that recomputes them."""
        if self.recomputable or mode.keep_outputs:
            return  # otherwise recomputing this node's output would first have to recompute its inputs
        references = {
            id(tensor.data): Recomputed(tensor.node, tensor.output_index)
            for tensor in inputs
            if tensor.node is not None and tensor.output_index in tensor.node.recomputable and tensor.unmodified
        }
        if references:
            self.kept = tuple([references.get(id(array), array) for array in self.kept])

    @contextlib.contextmanager
    def present_gradient(self, i: int) -> Iterator[Array | None]:
        """In backward: the gradient that input i already has if it is a leaf, or None. Inside the block no other thread
        adds to it, so `backward` may add to it in place and return it."""
        with grad_lock:
            leaf = self.parents[i] if self.parents else None
            yield leaf.present_grad("backward()", writable=True) if leaf is not None and leaf.is_leaf else None

    def gradient_room(self, i: int) -> Array | None:
        """In backward: memory in which the gradient of input i may be computed and returned. Usually None:
        something must have asked for it (`graph.mode`), and input i must be a leaf without a gradient."""
        leaf = self.parents[i] if mode.gradient_room is not None and self.parents else None
        if leaf is None or not leaf.is_leaf or leaf.grad is not None or mode.gradient_room is None:
            return None
        room: Array | None = mode.gradient_room(leaf)
        return room

    def free(self) -> None:
        """Drop all references. A later backward() through this node raises GraphFreedError."""
        self.__dict__.clear()
        self.kept = None

    @property
    def name(self) -> str:
        return type(self).__name__

    @classmethod
    def apply(cls, *inputs: Tensor, **options: Any) -> Any:
        """Run `forward` on the inputs' arrays and add the node to the graph."""
        node = cls()
        try:
            wanted = [tensor.requires_grad for tensor in inputs]
            arrays = [tensor._data for tensor in inputs]
            kind = type(arrays[0])
        except (AttributeError, IndexError):
            raise _no_tensors(cls.__name__, inputs) from None
        for array in arrays:
            if type(array) is not kind and name_of(array) != name_of(arrays[0]):
                raise different_backends(cls.__name__, *arrays)
        wants = mode.grad_enabled and any(wanted)
        node.needs = tuple(wanted) if wants else (False,) * len(wanted)
        with np.errstate(all="ignore"):  # NaN and infinities raise no warnings, as in the compiled bodies
            result = node.forward(*arrays, **options)
        several = isinstance(result, (tuple, list))
        results = [as_array(array) for array in (result if several else (result,))]
        for i, array in enumerate(results):
            if type(array) is not kind:
                results[i] = _as_output(cls.__name__, array, arrays, several)
        if mode.detect_anomaly:
            check_finite(node.name, "forward", results, arrays)
        made = tuple([Tensor(array, wants and is_floating(array.dtype)) for array in results])
        if wants:
            node.drop_recomputable(inputs)
            node.order = next(clock)
            node.parents = tuple([(t.node if t.node is not None else t) if t.requires_grad else None for t in inputs])
            node.parent_outputs = tuple([t.output_index for t in inputs])
            node.outputs = tuple([(array.shape, array.dtype) for array in results])
            for index, tensor in enumerate(made):
                tensor.node, tensor.output_index = node, index
        return made if several else made[0]


def _no_tensors(name: str, inputs: Sequence[object]) -> UsageError:
    """The error for inputs that are not tensors."""
    for i, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            return DtypeError(
                f"{name}.apply: input {i} must be a tensor, not {type(value).__name__}: make one with "
                "tinygpt.tensor(...), or pass it by keyword if it is an option"
            )
    return UsageError(f"{name}.apply: needs at least one tensor, got none")


def _as_output(name: str, value: Any, inputs: Sequence[Array], several: bool) -> Array:
    """Convert a Python number that `forward` returned to an array. Raises DtypeError unless the result is an array."""
    if isinstance(value, (bool, int, float)) and not several:
        dtype = next((array.dtype for array in inputs if is_floating(array.dtype)), None)
        return array_module(inputs[0]).asarray(value, dtype=dtype)
    if not is_array(value):
        where = " in a tuple or list" if several else ""
        raise DtypeError(
            f"{name}.forward: must return an array or a tuple of arrays, not {type(value).__name__}{where}: it works "
            "on plain arrays, without tensors"
        )
    return value
