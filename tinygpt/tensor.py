"""Tensor: an array, its gradient, and the graph behind it.

`x.data` and `x.grad` are plain `numpy.ndarray` or `cupy.ndarray`, and you may write into them. But writing into an
array between the forward and the backward pass can make gradients wrong. backward() refuses to run if a parameter that
it needs was changed by `optimizer.step()`, `load_state_dict()`, `p -= ...` under `no_grad()` or `p.data -= ...`.
`x.data = array` is safe: an operation that saved the old array keeps it. Two kinds of change go unnoticed: assigning to
elements (`x.data[...] = 0`), and `h.data *= ...` on a result that an operation has saved. Call `x.mark_changed()` after
these. Ids, indices and targets are copied, so you may refill their buffers.

The graph is made of `Function` nodes that point to the nodes of their inputs; a tensor points to the node that made
it. No node points to a tensor that is not a leaf, so an intermediate array is freed as soon as you drop the tensor,
unless an operation saved the array.

`backward()` walks back through the graph (`tinygpt/engine.py`).

First-order gradients only: a gradient is an array, not a tensor with its own graph.

The operators and methods (`+`, `@`, `.sum()`, `.gelu()`) are the functions of `tinygpt.ops`, bound to this
class at the end of `tinygpt/ops/__init__.py`.

Over 300 lines: the class lists the methods that `tinygpt.ops` binds.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import backends
from .backends.precision import is_floating
from .changes import note_change
from .engine import accumulate, backward_pass
from .errors import DtypeError, ShapeError, UsageError
from .graph import as_array
from .typing import Array, DType, DTypeLike, TensorLike

if TYPE_CHECKING:
    from . import ops, torch_names
    from .function import Function


class Tensor:
    """An array that remembers how it was computed. Make one with `tinygpt.tensor(...)`."""

    __slots__ = ("__weakref__", "_data", "grad", "node", "output_index", "requires_grad", "unmodified")
    __array_ufunc__ = None  # numpy_array + tensor calls the tensor's __radd__, not NumPy's add
    __hash__ = object.__hash__  # by identity, although == compares the elements: a tensor can be a key

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        if type(data) is not np.ndarray:
            data = _checked_array(data)
        if requires_grad and not is_floating(data.dtype):
            raise DtypeError(f"only floating-point tensors can require a gradient, not {data.dtype}")
        self._data = data
        self.unmodified = True  # for a result: its array is the one the operation returned, not written to since
        self.grad: Any = None
        self.requires_grad = requires_grad
        self.node: Function | None = None
        self.output_index = 0

    # What it is ---------------------------------------------------------------------------------

    def _set_data(self, data: Array) -> None:
        """For x.data = array, and for x.data *= 2, after which Python assigns the same array again."""
        data = _checked_array(data)
        if self.requires_grad and not is_floating(data.dtype):
            raise DtypeError(f"x.data = array: x requires a gradient, so the array must be floating, not {data.dtype}")
        if self.node is not None:
            self.unmodified = False
        elif data is self._data:
            self.mark_changed()
        self._data = data

    # read hundreds of times a step, so the getter is not a Python function
    data: Any = property(operator.attrgetter("_data"), _set_data, doc="The array: numpy.ndarray or cupy.ndarray.")

    def mark_changed(self) -> None:
        """Declare that the array was written into: a backward pass that needs its old contents will refuse to run."""
        note_change([self._data])
        self.unmodified = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return self._data.ndim

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
                f"the truth value of a tensor of shape {self.shape} is ambiguous: use x.numpy().all() or .any(); to "
                "find out whether it is in a list of tensors, any(x is y for y in tensors)"
            )
        return bool(self.item())

    def __float__(self) -> builtins.float:
        return builtins.float(self.item())

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
        """A leaf with these values on another backend; the tensor itself if it is there already.

        backend: "numpy" or "cupy", or PyTorch's "cpu" or "cuda". Raises UsageError.
        """
        if backends.backend_name(backend) == self.backend:
            return self
        return Tensor(backends.move(self.data, backend), requires_grad=self.requires_grad)

    def zero_grad(self) -> None:
        self.grad = None

    def present_grad(self, where: str, writable: bool = False) -> Any:
        """`grad`, checked: None, or a floating-point array of this tensor's shape on its backend. Raises UsageError.

        All code that reads or adds to a gradient gets it here, since compiled bodies do not check their arguments.
        writable: replace a read-only array by a copy.
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
        """A tensor with the same array and graph, and no gradient yet."""
        made = object.__new__(type(self))
        for name in Tensor.__slots__[1:]:
            setattr(made, name, getattr(self, name))
        made.grad = None
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copy.deepcopy and pickle: leaves only, since the graph behind a result belongs to the original."""
        if self.node is not None:
            raise UsageError(
                f"copy.deepcopy and pickle: this tensor of shape {self.shape} is a result (made by {self.node.name}), "
                "whose graph can't be copied: copy x.detach()"
            )
        return super().__reduce_ex__(max(int(protocol), 2))

    # The backward pass --------------------------------------------------------------------------

    def backward(self, grad: TensorLike | None = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf), contracted with `grad`, to the `.grad` of every leaf behind this tensor.

        grad: array of this tensor's shape; optional if the tensor is a single number (the default is 1).
        retain_graph: keep the saved arrays, so that `backward` can be called again.

        Raises UsageError when nothing behind this tensor requires a gradient or when a saved array was changed since
        (see the top of this module), ShapeError for a `grad` of another shape, GraphFreedError when an earlier
        `backward` has freed the graph.
        """
        grad = self._initial_gradient(grad)
        if self.node is None:
            accumulate(self, grad, fresh=False)
        else:
            backward_pass(self.node, self.output_index, grad, retain_graph)

    def _initial_gradient(self, grad: Any) -> Array:
        if not self.requires_grad:
            raise UsageError(
                "backward() on a tensor that does not require a gradient: nothing behind it has requires_grad=True, "
                "or it was computed under no_grad() or detached"
            )
        xp = backends.array_module(self.data)
        if grad is None:
            if self.size != 1:
                raise ShapeError(
                    f"backward() without a gradient needs a single number, this tensor has shape {self.shape}: "
                    "reduce it (.sum(), .mean()) or pass an array of that shape"
                )
            return backends.one(self.data) if self.ndim == 0 else xp.ones_like(self.data)
        if self.ndim == 0 and isinstance(grad, (int, float)) and grad == 1:
            return backends.one(self.data)
        grad = grad.data if isinstance(grad, Tensor) else grad
        if backends.is_array(grad) and backends.name_of(grad) != self.backend:
            raise backends.different_backends("backward(grad)", self.data, grad)
        try:
            grad = xp.asarray(grad, dtype=self.dtype)
        except (ValueError, TypeError):
            raise DtypeError(f"backward(grad): {type(grad).__name__} is not an array of numbers") from None
        if grad.shape != self.shape:
            raise ShapeError(f"backward(grad): grad has shape {grad.shape}, the tensor has {self.shape}")
        return grad

    # The operators and methods ------------------------------------------------------------------
    # At run time tinygpt.ops binds them (ops/_bind.py). What follows is for type checkers and editors. In place they
    # return Self, so that p -= ... leaves a Parameter one; mypy compares that with the functions above, hence [misc].

    if TYPE_CHECKING:
        exp, log, sqrt, tanh, sigmoid = ops.exp, ops.log, ops.sqrt, ops.tanh, ops.sigmoid
        relu, gelu, silu = ops.relu, ops.gelu, ops.silu
        softmax, log_softmax = ops.softmax, ops.log_softmax
        sum, mean, var, max, min = ops.sum, ops.mean, ops.var, ops.max, ops.min
        abs, __abs__, argmax = ops.abs, ops.abs, ops.argmax
        reshape, transpose, split = ops.reshape, ops.transpose, ops.split

        view, permute, masked_fill = torch_names.view, torch_names.permute, torch_names.masked_fill
        squeeze, unsqueeze, float = torch_names.squeeze, torch_names.unsqueeze, torch_names.float
        requires_grad_, cpu, cuda = torch_names.requires_grad_, torch_names.cpu, torch_names.cuda

        __add__, __sub__, __mul__, __truediv__ = ops.add, ops.sub, ops.mul, ops.div
        __pow__, __matmul__, __neg__, __getitem__ = ops.pow, ops.matmul, ops.neg, ops.getitem

        @property
        def T(self) -> Tensor: ...
        @property
        def size(self) -> torch_names.Size: ...
        @property
        def device(self) -> str: ...
        def __radd__(self, other: TensorLike) -> Tensor: ...
        def __rsub__(self, other: TensorLike) -> Tensor: ...
        def __rmul__(self, other: TensorLike) -> Tensor: ...
        def __rtruediv__(self, other: TensorLike) -> Tensor: ...
        def __rpow__(self, other: TensorLike) -> Tensor: ...
        def __rmatmul__(self, other: TensorLike) -> Tensor: ...
        def __iadd__(self, other: TensorLike) -> Self: ...  # type: ignore[misc]
        def __isub__(self, other: TensorLike) -> Self: ...  # type: ignore[misc]
        def __imul__(self, other: TensorLike) -> Self: ...  # type: ignore[misc]
        def __itruediv__(self, other: TensorLike) -> Self: ...  # type: ignore[misc]
        def __ipow__(self, other: TensorLike) -> Self: ...  # type: ignore[misc]
        def __lt__(self, other: TensorLike) -> Tensor: ...
        def __le__(self, other: TensorLike) -> Tensor: ...
        def __gt__(self, other: TensorLike) -> Tensor: ...
        def __ge__(self, other: TensorLike) -> Tensor: ...
        def __eq__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __iter__(self) -> Iterator[Tensor]: ...


def _checked_array(data: object) -> Array:
    """`data`, with a NumPy scalar as an array. Raises DtypeError for anything else that is not an array."""
    data = as_array(data)
    if not backends.is_array(data):
        raise DtypeError(
            f"a Tensor holds an array of NumPy or CuPy, not {type(data).__name__}: make one with tinygpt.tensor(...), "
            "and set x.data to a plain array"
        )
    return data


def _checked_grad(leaf: Tensor, grad: Any, where: str) -> Any:
    """A gradient that the user set, with a NumPy scalar as an array. Raises UsageError if it does not fit `leaf`."""
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


def tensor(
    data: TensorLike, requires_grad: bool = False, dtype: DTypeLike | None = None, backend: str | None = None
) -> Tensor:
    """Make a tensor from an array, a number or a nested list.

    Without a dtype, arrays keep theirs and Python floats become float32. A NumPy array is not copied: the tensor and
    the array share their memory on the CPU. backend: "numpy" or "cupy"; None means the current one.
    """
    if isinstance(data, Tensor):
        data = data.data
    if not backends.is_array(data):
        plain = _plain_array(data)
        if plain.dtype == np.float64 and not isinstance(data, np.generic) and dtype in (None, "float32", np.float32):
            with np.errstate(over="ignore"):  # numbers too large for float32 become infinity
                plain = plain.astype(np.float32)
        data = plain
    if isinstance(data, np.ndarray):
        data = np.asarray(data)  # a plain array, not a memory map or an np.matrix, whose * means something else
    target = backends.current() if backend is None else backends.backend_name(backend)
    if dtype is not None:
        data = data.astype(check_dtype(dtype), copy=False)
    check_dtype(data.dtype)
    return Tensor(backends.move(data, target) if target != backends.name_of(data) else data, requires_grad)


def _plain_array(data: Any) -> np.ndarray:
    """A number or nested lists of numbers as an array. Raises DtypeError."""
    try:
        plain = np.asarray(data)
    except (ValueError, TypeError, OverflowError):
        plain = np.empty(0, dtype=object)
    if plain.dtype == object:
        raise DtypeError(f"tensor() can't make an array from {type(data).__name__}: its rows differ in length or type")
    return plain


def check_dtype(dtype: Any) -> DType:
    """`dtype` as a NumPy dtype that a tensor can hold: float32, float64, integers or bool. Raises DtypeError."""
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise DtypeError(f"a tensor holds float32, float64, integers or bool, not {dtype!r}") from None
    if dtype in (np.float32, np.float64) or dtype.kind in "iub":
        return dtype
    raise DtypeError(f"a tensor holds float32, float64, integers or bool, not {dtype}")


def as_tensor(value: TensorLike, like: Tensor | None = None) -> Tensor:
    """An operand as a tensor. A number takes the dtype and backend of `like`, the other operand; arrays keep theirs."""
    if isinstance(value, Tensor):
        return value
    if like is None:
        return tensor(value)
    if backends.is_array(value):  # if it is on another backend, the operation will refuse it
        return tensor(value, backend=backends.name_of(value))
    if isinstance(value, (bool, int, float)) and is_floating(like.dtype):
        with np.errstate(over="ignore"):  # numbers too large for the dtype become infinity
            return Tensor(backends.array_module(like.data).asarray(value, dtype=like.dtype))
    return tensor(value, backend=like.backend)
