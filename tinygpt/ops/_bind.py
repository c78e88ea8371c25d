"""The operators and methods of Tensor: each is the function of the same name in `tinygpt.ops`.

Comparisons are defined here too. They return boolean tensors without a gradient, for masks and `where`. `==` and `!=`
compare element by element, but a tensor's hash is its identity, so tensors can be dictionary keys. To look for a tensor
in a list, use `any(x is y for y in tensors)`.

`p -= lr * p.grad` under `no_grad` changes the parameter p in place, as in PyTorch. For any other tensor `x -= y` means
`x = x - y`, which is recorded in the graph. For a parameter outside `no_grad` it is refused: the name p would then mean
a new tensor, which the optimizer does not update.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backends import array_module, different_backends, is_array
from ..errors import ShapeError, UsageError
from ..graph import mode
from ..tensor import Tensor, as_tensor
from ._shapes import broadcast_shape

SIGNS = {"add": "+=", "sub": "-=", "mul": "*=", "truediv": "/=", "pow": "**=", "matmul": "@="}
OPERATORS = {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "pow": "pow", "matmul": "matmul"}
COMPARABLE = (Tensor, bool, int, float, np.generic, list, tuple)
# Said again in Tensor's class, for type checkers, which see only what is written out there; tests/tensor/test_types.py
# says what is missing at one of the two places.
METHODS = (
    *("exp", "log", "sqrt", "tanh", "sigmoid", "relu", "gelu", "silu", "softmax", "log_softmax"),
    *("sum", "mean", "var", "max", "min", "argmax", "abs", "reshape", "transpose", "split"),
)


def bind(operations: dict[str, Any]) -> None:
    """Give Tensor its operators and methods. operations: the names of the module `tinygpt.ops`."""
    for symbol, name in OPERATORS.items():
        function = operations[name]
        setattr(Tensor, f"__{symbol}__", function)
        setattr(Tensor, f"__r{symbol}__", _reflected(function))
    Tensor.__neg__ = operations["neg"]
    Tensor.__getitem__ = operations["getitem"]
    Tensor.__abs__ = operations["abs"]
    for name in METHODS:
        setattr(Tensor, name, operations[name])
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(Tensor, f"__{name}__", _comparison(name, getattr(operator, name)))
    for symbol in SIGNS:
        setattr(Tensor, f"__i{symbol}__", _in_place(symbol))
    Tensor.__iter__ = _iterate  # type: ignore[method-assign]
    Tensor.T = property(operations["transpose"])  # type: ignore[assignment,method-assign]


def _reflected(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: function(other, self)


def _comparison(name: str, compare: Callable[[Any, Any], Any]) -> Callable[[Tensor, Any], Tensor]:
    def compared(self: Tensor, other: Any) -> Any:
        if name in ("eq", "ne") and not (isinstance(other, COMPARABLE) or is_array(other)):
            return NotImplemented  # for None, strings and the like Python then answers: not equal
        other = as_tensor(other, self)
        broadcast_shape(name, self, other)
        if other.backend != self.backend:
            raise different_backends(name, self.data, other.data)
        return Tensor(array_module(self.data).asarray(compare(self.data, other.data)))

    return compared


def _in_place(symbol: str) -> Callable[[Tensor, Any], Any]:
    change, sign = getattr(operator, f"i{symbol}"), SIGNS[symbol]

    def changed(self: Tensor, other: Any) -> Any:
        if self.node is not None or not self.requires_grad:
            return NotImplemented  # Python then computes x = x - y
        if mode.grad_enabled or symbol == "matmul":
            raise UsageError(
                f"{sign}: a tensor that requires a gradient can't be changed in place"
                + (": write p.data[...] = ..." if symbol == "matmul" else " outside of tinygpt.no_grad()")
                + ", or give the result another name"
            )
        other = as_tensor(other, self)
        if other.backend != self.backend:
            raise different_backends(sign, self.data, other.data)
        if broadcast_shape(sign, self, other) != self.shape:
            raise ShapeError(f"{sign}: a tensor of shape {self.shape} can't hold a result of {other.shape} in place")
        if not getattr(self.data.flags, "writeable", True):
            raise UsageError(f"{sign}: the array of the tensor is read-only: give the tensor a copy")
        with np.errstate(all="ignore"):
            change(self.data, other.data)
        self.mark_changed()
        return self

    return changed


def _iterate(self: Tensor) -> Iterator[Tensor]:
    """The tensors along the first axis."""
    if self.ndim == 0:
        raise ShapeError("a tensor of shape () has no axis to iterate over: it holds a single number, see .item()")
    return (self[i] for i in range(self.shape[0]))
