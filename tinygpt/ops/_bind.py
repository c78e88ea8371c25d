"""The operators and methods of Tensor: each is the function of the same name in `tinygpt.ops`.

Comparisons are here as well. They give boolean tensors without a gradient, for masks and `where`. `==` stays Python's
own, which compares identity, so that a tensor can be the key of a dictionary.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from ..backends import array_module, different_backends
from ..errors import ShapeError
from ..tensor import Tensor, as_tensor
from ._shapes import broadcast_shape

OPERATORS = {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "pow": "pow", "matmul": "matmul"}
METHODS = (
    *("exp", "log", "sqrt", "tanh", "sigmoid", "relu", "gelu", "softmax", "log_softmax"),
    *("sum", "mean", "var", "max", "reshape", "transpose", "split"),
)


def bind(operations: dict[str, Any]) -> None:
    """Give Tensor the operators and methods that `operations`, a module's names, defines."""
    for symbol, name in OPERATORS.items():
        function = operations[name]
        setattr(Tensor, f"__{symbol}__", function)
        setattr(Tensor, f"__r{symbol}__", _reflected(function))
    Tensor.__neg__ = operations["neg"]
    Tensor.__getitem__ = operations["getitem"]
    for name in METHODS:
        setattr(Tensor, name, operations[name])
    for name in ("lt", "le", "gt", "ge"):
        setattr(Tensor, f"__{name}__", _comparison(name, getattr(operator, name)))
    Tensor.__iter__ = _iterate  # type: ignore[attr-defined]
    Tensor.T = property(operations["transpose"])


def _reflected(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: function(other, self)


def _comparison(name: str, compare: Callable[[Any, Any], Any]) -> Callable[[Tensor, Any], Tensor]:
    def compared(self: Tensor, other: Any) -> Tensor:
        other = as_tensor(other, self)
        broadcast_shape(name, self, other)
        if other.backend != self.backend:
            raise different_backends(name, self.data, other.data)
        return Tensor(array_module(self.data).asarray(compare(self.data, other.data)))

    return compared


def _iterate(self: Tensor) -> Iterator[Tensor]:
    """The tensors along the first axis."""
    if self.ndim == 0:
        raise ShapeError("a tensor of shape () has no axis to iterate over: it holds a single number, see .item()")
    return (self[i] for i in range(self.shape[0]))
