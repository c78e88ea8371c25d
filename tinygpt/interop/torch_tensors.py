"""Tensors as the pickle of a PyTorch file describes them: the names that it may use, and what calling them would make.

A tensor is a view of a storage, which is a row of numbers in the file: an offset, a shape and strides. Before anything
is allocated, it is checked to lie within its storage and to have no more numbers than it: a tensor that repeats numbers
with strides of 0 could claim any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MOST_AXES = 32
_LARGEST = 1 << 56

# PyTorch's storage types, and what safetensors calls their dtypes.
_CODES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
DICTIONARY = "collections.OrderedDict"
_TENSOR, _TENSOR_V1, _PARAMETER = (f"torch._utils._rebuild_{name}" for name in ("tensor_v2", "tensor", "parameter"))
STORAGES = {f"torch.{name}": code for name, code in _CODES.items()}
ADMITTED = frozenset({DICTIONARY, _TENSOR, _TENSOR_V1, _PARAMETER, *STORAGES})


class Refused(ValueError):
    """The pickle is damaged, or contains something that is not admitted. The message is a clause about the file."""


@dataclass(frozen=True)
class Storage:
    """A row of `size` numbers of the dtype `code`, stored in the file under `key`."""

    key: str
    code: str
    size: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage: the element at index i is at offset + sum over the axes n of i[n] * strides[n]."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether the numbers lie one after the other in the order of the axes."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return self.size == 0
            expected *= length
        return True


@dataclass(frozen=True)
class Name:
    """A name from a GLOBAL instruction: one of `ADMITTED`."""

    name: str


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks, metadata=None).

    The older _rebuild_tensor ends with the strides.
    """
    if len(arguments) not in (4, 6, 7) or type(arguments[0]) is not Storage:
        raise Refused("its pickle is damaged: a tensor does not say where its numbers are stored")
    storage, offset, shape, strides = arguments[:4]
    if not (are_counts(shape) and are_counts(strides) and are_counts((offset,)) and len(shape) == len(strides)):
        raise Refused("its pickle is damaged: a tensor has a shape, strides or an offset that are not counts")
    if arguments[5:6] not in ((), ({},)) or arguments[6:7] not in ((), (None,), ({},)):
        raise Refused("its pickle has a tensor with hooks or a flag, such as conjugation, which no weight has")
    if math.prod(n or 1 for n in shape) >= _LARGEST:
        raise Refused(f"its pickle has a tensor of the impossible shape {shape}")
    tensor = Tensor(storage, offset, shape, strides)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if tensor.size and last >= storage.size:
        raise Refused(f"its pickle has a tensor of shape {shape} that reaches beyond its {storage.size} stored numbers")
    if tensor.size > storage.size:
        raise Refused(f"its pickle has a tensor of shape {shape} that repeats its {storage.size} stored numbers")
    return tensor


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """_rebuild_parameter(tensor, requires_grad, backward_hooks)."""
    if len(arguments) != 3 or type(arguments[0]) is not Tensor or arguments[2] != {}:
        raise Refused("its pickle is damaged: a parameter is not a tensor without hooks")
    return arguments[0]


def are_counts(values: Any) -> bool:
    return (
        type(values) is tuple
        and len(values) <= _MOST_AXES
        and all(type(n) is int and 0 <= n < _LARGEST for n in values)
    )


MAKE: dict[str, Callable[[tuple[Any, ...]], Tensor]] = {
    _TENSOR: _tensor, _TENSOR_V1: _tensor, _PARAMETER: _parameter,
}  # fmt: skip
