"""Tensor: an array, its gradient, and the graph behind it.

`x.data` and `x.grad` are plain `numpy.ndarray` or `cupy.ndarray`. The graph is made of `Function` nodes
that point to the nodes of their inputs; a tensor points to the node that made it. No node points to a
tensor that is not a leaf, so an intermediate array lives only as long as somebody saved it.

`backward()` visits the nodes in the reverse order of their making, which is always a topological order, with
no recursion: a graph may be as deep as memory allows. As it goes it frees what each node had saved.

First-order gradients only: a gradient is an array, not a tensor with a graph of its own.

The operators and methods (`+`, `@`, `.sum()`, `.gelu()`) are the functions of `tinygpt.ops`, bound to this
class at the end of `tinygpt/ops/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import backends
from .backends.precision import is_16_bit, is_floating
from .errors import DtypeError, GraphFreedError, ShapeError, UsageError
from .function import Function, _check_finite, as_array, mode


class Tensor:
    """An array that remembers how it was computed. Make one with `tinygpt.tensor(...)`."""

    __slots__ = ("__weakref__", "data", "grad", "node", "output_index", "requires_grad")
    __array_ufunc__ = None  # numpy_array + tensor asks the tensor, not NumPy

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if requires_grad and not is_floating(data.dtype):
            raise DtypeError(f"only floating-point tensors can require a gradient, not {data.dtype}")
        self.data = data
        self.grad: Any = None
        self.requires_grad = requires_grad
        self.node: Function | None = None
        self.output_index = 0

    # What it is ---------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def backend(self) -> str:
        """ "numpy" or "cupy"."""
        return backends.name_of(self.data)

    @property
    def is_leaf(self) -> bool:
        return self.node is None

    def __len__(self) -> int:
        if self.ndim == 0:
            raise ShapeError("len() of a tensor without axes (shape ()): it holds a single number, see .item()")
        return self.shape[0]

    def __repr__(self) -> str:
        made_by = f", made by {self.node.name}" if self.node is not None else ""
        wants = ", requires_grad=True" if self.requires_grad and self.node is None else ""
        body = np.array2string(self.numpy(), precision=4, threshold=100, prefix="tensor(")
        return f"tensor({body}, dtype={self.dtype}{wants}{made_by})"

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def item(self) -> Any:
        """The single number in it, as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item() needs a tensor of one element, this one has shape {self.shape}")
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the tensor's own memory on the CPU, a copy from a GPU."""
        return backends.move(self.data, "numpy")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """np.asarray(tensor) is tensor.numpy(); without this NumPy would make an array of small tensors."""
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def detach(self) -> Tensor:
        """The same array, without the graph."""
        return Tensor(self.data)

    def to(self, backend: str) -> Tensor:
        """A leaf with these values on another backend; itself when it is there already."""
        if backend == self.backend:
            return self
        return Tensor(backends.move(self.data, backend), requires_grad=self.requires_grad)

    def zero_grad(self) -> None:
        self.grad = None

    # The backward pass --------------------------------------------------------------------------

    def backward(self, grad: Any = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf), contracted with `grad`, to the `.grad` of every leaf behind this tensor.

        grad: array of this tensor's shape; may be left out for a single number (then it is 1).
        retain_graph: keep the saved arrays, so that `backward` can be called again.

        Raises UsageError when nothing behind this tensor requires a gradient, ShapeError for a `grad` of
        another shape, GraphFreedError when an earlier `backward` has freed the graph.
        """
        grad = self._initial_gradient(grad)
        if self.node is None:
            _accumulate(self, grad, fresh=False)
            return
        nodes = _reachable(self.node)
        for node in nodes:
            if node.kept is None:
                raise GraphFreedError(
                    f"backward() comes to {node.name}, whose saved arrays an earlier backward() has freed: "
                    "compute the result anew, or call the earlier backward(retain_graph=True)"
                )
        pending: dict[Function, list[Any]] = {self.node: [None] * len(self.node.outputs)}
        pending[self.node][self.output_index] = grad
        owned: set[tuple[Function, int]] = set()  # slots whose array nobody else holds: it may be written into
        with np.errstate(all="ignore"):
            while nodes:
                node = nodes.pop()
                received = pending.pop(node, None)
                if received is not None:
                    _step(node, received, pending, owned)
                if not retain_graph:
                    node.free()

    def _initial_gradient(self, grad: Any) -> Any:
        if not self.requires_grad:
            raise UsageError(
                "backward() on a tensor that requires no gradient: nothing behind it has requires_grad=True, "
                "or it was computed under no_grad() or detached"
            )
        xp = backends.array_module(self.data)
        if grad is None:
            if self.size != 1:
                raise ShapeError(
                    f"backward() without a gradient needs a single number, this tensor has shape {self.shape}: "
                    "reduce it (.sum(), .mean()) or pass an array of that shape"
                )
            return xp.ones_like(self.data)
        grad = grad.data if isinstance(grad, Tensor) else grad
        if backends.is_array(grad) and backends.name_of(grad) != self.backend:
            raise backends.different_backends("backward(grad)", self.data, grad)
        try:
            grad = xp.asarray(grad, dtype=self.dtype)
        except (ValueError, TypeError):
            raise DtypeError(f"backward(grad): {type(grad).__name__} is no array of numbers") from None
        if grad.shape != self.shape:
            raise ShapeError(f"backward(grad): grad has shape {grad.shape}, the tensor has {self.shape}")
        return grad

    # The operators and methods, bound by tinygpt.ops ---------------------------------------------

    __add__: Callable[..., Tensor]
    __radd__: Callable[..., Tensor]
    __sub__: Callable[..., Tensor]
    __rsub__: Callable[..., Tensor]
    __mul__: Callable[..., Tensor]
    __rmul__: Callable[..., Tensor]
    __truediv__: Callable[..., Tensor]
    __rtruediv__: Callable[..., Tensor]
    __pow__: Callable[..., Tensor]
    __neg__: Callable[..., Tensor]
    __matmul__: Callable[..., Tensor]
    __rmatmul__: Callable[..., Tensor]
    __getitem__: Callable[..., Tensor]
    exp: Callable[..., Tensor]
    log: Callable[..., Tensor]
    sqrt: Callable[..., Tensor]
    tanh: Callable[..., Tensor]
    sigmoid: Callable[..., Tensor]
    relu: Callable[..., Tensor]
    gelu: Callable[..., Tensor]
    sum: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    var: Callable[..., Tensor]
    max: Callable[..., Tensor]
    reshape: Callable[..., Tensor]
    transpose: Callable[..., Tensor]
    split: Callable[..., Any]
    softmax: Callable[..., Tensor]
    log_softmax: Callable[..., Tensor]
    __lt__: Callable[..., Tensor]
    __le__: Callable[..., Tensor]
    __gt__: Callable[..., Tensor]
    __ge__: Callable[..., Tensor]
    __rpow__: Callable[..., Tensor]
    T: Any


def _reachable(root: Function) -> list[Function]:
    """Every node behind `root`, in the order of making: the last is the first to run backward."""
    seen = {root}
    stack = [root]
    while stack:
        for parent in stack.pop().parents:
            if isinstance(parent, Function) and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda node: node.order)


def _step(
    node: Function, received: list[Any], pending: dict[Function, list[Any]], owned: set[tuple[Function, int]]
) -> None:
    """Run one node's backward and hand its results to the nodes and leaves before it."""
    for index, (shape, dtype) in enumerate(node.outputs):
        if received[index] is None:  # an output nobody used
            sample = next(g for g in received if g is not None)
            received[index] = backends.array_module(sample).zeros(shape, dtype)
    node.may_overwrite = all((node, index) in owned for index in range(len(received)))
    grads = node.backward(*received)
    grads = tuple([as_array(grad) for grad in grads]) if isinstance(grads, tuple) else (as_array(grads),)
    if len(grads) != len(node.parents):
        raise AssertionError(f"{node.name}.backward returned {len(grads)} gradients for {len(node.parents)} inputs")
    if mode.detect_anomaly:
        _check_finite(node.name, "backward", grads, received)
    holds = [*grads, *(() if node.may_overwrite else received)]  # an array that is in here once is nobody else's
    held = [id(_memory(array)) for array in holds if array is not None]
    for i, (parent, output, grad) in enumerate(zip(node.parents, node.parent_outputs, grads, strict=True)):
        if parent is None:
            continue
        if grad is None:
            raise AssertionError(f"{node.name}.backward returned no gradient for input {i}, which needs one")
        shape = parent.outputs[output][0] if isinstance(parent, Function) else parent.shape
        if grad.shape != shape:
            raise AssertionError(f"{node.name}.backward: gradient of shape {grad.shape} for input {i} of shape {shape}")
        alone = held.count(id(_memory(grad))) == 1
        if isinstance(parent, Function):
            _add_pending(parent, output, grad, alone, pending, owned)
        else:
            _accumulate(parent, grad, fresh=alone and grad.base is None)


def _memory(array: Any) -> Any:
    """The array that owns an array's elements: itself, or the one that it is a view of."""
    return array if array.base is None else array.base


def _add_pending(
    parent: Function,
    output: int,
    grad: Any,
    alone: bool,
    pending: dict[Function, list[Any]],
    owned: set[tuple[Function, int]],
) -> None:
    """Add to what a node will receive. `alone`: nobody else holds this array."""
    dtype = parent.outputs[output][1]
    if grad.dtype != dtype and not (is_16_bit(dtype) and grad.dtype == np.float32):  # more digits are welcome
        grad, alone = grad.astype(dtype), True
    slots = pending.setdefault(parent, [None] * len(parent.outputs))
    present = slots[output]
    if present is None:
        slots[output] = grad
        if alone and grad.flags.c_contiguous and getattr(grad.flags, "writeable", True):  # not one number stretched
            owned.add((parent, output))
    elif (parent, output) in owned and present.dtype == grad.dtype:
        present += grad
    else:
        slots[output] = present + grad
        owned.add((parent, output))


def _accumulate(leaf: Tensor, grad: Any, fresh: bool) -> None:
    """Add to a leaf's gradient. `fresh`: nobody else holds this array, so it can be kept without a copy."""
    if leaf.grad is grad:
        return  # backward has added to it itself
    if leaf.grad is not None:
        leaf.grad += grad
    elif fresh and grad.dtype == leaf.dtype and grad.flags.c_contiguous:
        leaf.grad = grad
    else:
        leaf.grad = backends.array_module(grad).array(grad, dtype=leaf.dtype, order="C")


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None, backend: str | None = None) -> Tensor:
    """Make a tensor of an array, a number or a nested list.

    Arrays keep their dtype; Python floats become float32. A NumPy array is not copied: the tensor and
    the array share their memory on the CPU. backend: "numpy" or "cupy"; None means the current one.
    """
    if isinstance(data, Tensor):
        data = data.data
    if not backends.is_array(data):
        plain = _plain_array(data)
        if plain.dtype == np.float64 and not isinstance(data, np.generic):
            with np.errstate(over="ignore"):  # beyond float32's largest number is infinity
                plain = plain.astype(np.float32)
        data = plain
    if isinstance(data, np.ndarray):
        data = np.asarray(data)  # the plain array in a memory map or an np.matrix, whose * is another operation
    target = backends.current() if backend is None else backend
    if dtype is not None:
        data = data.astype(check_dtype(dtype), copy=False)
    check_dtype(data.dtype)
    return Tensor(backends.move(data, target) if target != backends.name_of(data) else data, requires_grad)


def _plain_array(data: Any) -> np.ndarray:
    """Numbers and nested lists of them as an array."""
    try:
        plain = np.asarray(data)
    except (ValueError, TypeError, OverflowError):
        plain = np.empty(0, dtype=object)
    if plain.dtype == object:
        raise DtypeError(f"tensor() can't make an array of {type(data).__name__}: its rows differ in length or type")
    return plain


def check_dtype(dtype: Any) -> np.dtype:
    """float32, float64, integers or bool; anything else is refused by name."""
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise DtypeError(f"a tensor holds float32, float64, integers or bool, not {dtype!r}") from None
    if dtype in (np.float32, np.float64) or dtype.kind in "iub":
        return dtype
    raise DtypeError(f"a tensor holds float32, float64, integers or bool, not {dtype}")


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """An operand as a tensor: numbers take the dtype and backend of the tensor beside them, arrays stay as they are."""
    if isinstance(value, Tensor):
        return value
    if like is None:
        return tensor(value)
    if backends.is_array(value):  # on another backend, the operation will say so
        return tensor(value, backend=backends.name_of(value))
    if isinstance(value, (bool, int, float)) and is_floating(like.dtype):
        with np.errstate(over="ignore"):  # beyond the dtype's largest number is infinity
            return Tensor(backends.array_module(like.data).asarray(value, dtype=like.dtype))
    return tensor(value, backend=like.backend)
