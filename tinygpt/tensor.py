"""Tensor: an array, its gradient, and the graph behind it.

`x.data` and `x.grad` are plain `numpy.ndarray` or `cupy.ndarray`, and may be written into. What is written into an
array between the forward and the backward pass can make gradients wrong. It is noticed, and backward() refuses, when a
parameter was changed by `optimizer.step()`, `load_state_dict()`, `p -= ...` under `no_grad()` or `p.data -= ...`; with
`x.data = array` an operation that has saved the old array keeps that. It can't be noticed when elements of the array
are assigned (`x.data[...] = 0`), nor when `h.data *= ...` changes a result that an operation has saved before: say
`x.mark_changed()` after that. Ids, indices and targets are copied: their buffers may be filled anew.

The graph is made of `Function` nodes that point to the nodes of their inputs; a tensor points to the node that made
it. No node points to a tensor that is not a leaf, so an intermediate array lives only as long as somebody saved it.

`backward()` walks back through the graph (`tinygpt/engine.py`).

First-order gradients only: a gradient is an array, not a tensor with a graph of its own.

The operators and methods (`+`, `@`, `.sum()`, `.gelu()`) are the functions of `tinygpt.ops`, bound to this
class at the end of `tinygpt/ops/__init__.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends
from .backends.precision import is_floating
from .changes import note_change
from .engine import accumulate, backward_pass
from .errors import DtypeError, ShapeError, UsageError
from .graph import as_array

if TYPE_CHECKING:
    from .function import Function


class Tensor:
    """An array that remembers how it was computed. Make one with `tinygpt.tensor(...)`."""

    __slots__ = ("__weakref__", "_data", "grad", "node", "output_index", "requires_grad", "unmodified")
    __array_ufunc__ = None  # numpy_array + tensor asks the tensor, not NumPy
    __hash__ = object.__hash__  # by identity, although == compares the elements: a tensor can be a key

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if type(data) is not np.ndarray:
            data = _checked_array(data)
        if requires_grad and not is_floating(data.dtype):
            raise DtypeError(f"only floating-point tensors can require a gradient, not {data.dtype}")
        self._data = data
        self.unmodified = True  # of a result: the array is the one its operation returned, and nobody has written to it
        self.grad: Any = None
        self.requires_grad = requires_grad
        self.node: Function | None = None
        self.output_index = 0

    # What it is ---------------------------------------------------------------------------------

    def _set_data(self, data: Any) -> None:
        """x.data = array, and x.data *= 2, after which Python sets the same array again."""
        data = _checked_array(data)
        if self.requires_grad and not is_floating(data.dtype):
            raise DtypeError(f"x.data = array: x requires a gradient, so the array must be floating, not {data.dtype}")
        if self.node is not None:
            self.unmodified = False
        elif data is self._data:
            self.mark_changed()
        self._data = data

    # read a hundred times a step, hence without a function in Python
    data: Any = property(operator.attrgetter("_data"), _set_data, doc="The array: numpy.ndarray or cupy.ndarray.")

    def mark_changed(self) -> None:
        """Say that the array was written into: a backward pass that needs what was in it before will refuse."""
        note_change([self._data])
        self.unmodified = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        return self._data.size

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def backend(self) -> str:
        """ "numpy" or "cupy"."""
        return backends.name_of(self._data)

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
        if self.size != 1:
            raise ShapeError(
                f"a tensor of shape {self.shape} is neither true nor false as a whole: ask x.numpy().all() or .any(); "
                "whether it is one of some tensors, any(x is y for y in tensors)"
            )
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

    def present_grad(self, where: str, writable: bool = False) -> Any:
        """`grad` for arithmetic: None, or a floating-point array of this tensor's shape on its backend; or a sentence.

        Everybody who reads or adds to a gradient asks here, since compiled bodies trust what they are given.
        writable: in memory that may be written to, if need be as a copy.
        """
        grad, data = self.grad, self._data
        if grad is None:
            return None
        if type(grad) is not type(data) or grad.dtype != data.dtype or grad.shape != data.shape:
            grad = self.grad = _checked_grad(self, grad, where)
        if writable and not getattr(grad.flags, "writeable", True):
            grad = self.grad = grad.copy()
        return grad

    # Copies -------------------------------------------------------------------------------------

    def __copy__(self) -> Tensor:
        """Of the same array and graph, with no gradient yet."""
        made = object.__new__(type(self))
        for name in Tensor.__slots__[1:]:
            setattr(made, name, getattr(self, name))
        made.grad = None
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copy.deepcopy and pickle: a leaf alone, since the graph behind a result belongs to the original."""
        if self.node is not None:
            raise UsageError(
                f"copy.deepcopy and pickle: this tensor of shape {self.shape} is a result (made by {self.node.name}), "
                "whose graph can't be copied: copy x.detach()"
            )
        return super().__reduce_ex__(max(int(protocol), 2))

    # The backward pass --------------------------------------------------------------------------

    def backward(self, grad: Any = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf), contracted with `grad`, to the `.grad` of every leaf behind this tensor.

        grad: array of this tensor's shape; may be left out for a single number (then it is 1).
        retain_graph: keep the saved arrays, so that `backward` can be called again.

        Raises UsageError when nothing behind this tensor requires a gradient and when an array that is needed was
        changed since (see the top of this module), ShapeError for a `grad` of another shape, GraphFreedError when an
        earlier `backward` has freed the graph.
        """
        grad = self._initial_gradient(grad)
        if self.node is None:
            accumulate(self, grad, fresh=False)
        else:
            backward_pass(self.node, self.output_index, grad, retain_graph)

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
    __iadd__: Callable[..., Tensor]
    __isub__: Callable[..., Tensor]
    __imul__: Callable[..., Tensor]
    __itruediv__: Callable[..., Tensor]
    __ipow__: Callable[..., Tensor]
    __imatmul__: Callable[..., Tensor]
    __lt__: Callable[..., Tensor]
    __le__: Callable[..., Tensor]
    __gt__: Callable[..., Tensor]
    __ge__: Callable[..., Tensor]
    __rpow__: Callable[..., Tensor]
    T: Any


def _checked_array(data: Any) -> Any:
    """What a tensor can hold, as it is; a NumPy scalar as an array; or a sentence."""
    data = as_array(data)
    if not backends.is_array(data):
        raise DtypeError(
            f"a Tensor holds an array of NumPy or CuPy, not {type(data).__name__}: make one with tinygpt.tensor(...), "
            "and set x.data to a plain array"
        )
    return data


def _checked_grad(leaf: Tensor, grad: Any, where: str) -> Any:
    """A gradient that somebody has set: a NumPy scalar as an array; or a sentence for what is no gradient of `leaf`."""
    grad = as_array(grad)
    if not backends.is_array(grad):
        way = "set x.grad = y.data" if isinstance(grad, Tensor) else "set x.grad to an array or None"
        raise DtypeError(f"{where}: the .grad of a tensor must be a plain array, not {type(grad).__name__}: {way}")
    if not is_floating(grad.dtype):
        raise DtypeError(
            f"{where}: the .grad of a tensor must be floating-point, not {grad.dtype}: set it to "
            f"grad.astype('{leaf.dtype}')"
        )
    if grad.shape != leaf.shape:
        raise ShapeError(f"{where}: the .grad of a tensor of shape {leaf.shape} must have that shape, not {grad.shape}")
    if backends.name_of(grad) != leaf.backend:
        raise backends.different_backends(f"{where}: a tensor and its .grad", leaf.data, grad)
    return grad


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
