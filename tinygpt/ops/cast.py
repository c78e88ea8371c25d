"""Cast: the same numbers in another floating-point type. Training in 16 bits is built on it.

    y = round(x)

round(x) is the nearest number of the other type.

Derivation of the gradient. Rounding is a staircase, so its derivative is 0 almost everywhere, and the model would learn
nothing from it. What we want is the gradient of the smooth function that the staircase follows, the identity:

    dx = dy

dx has x's type. Between float32 and float64 this is the true derivative, up to rounding errors. For 16 bits it is what
mixed precision means: the model runs on rounded weights, and the float32 weights (the master weights) take the
gradients of the rounded ones as their own. Updates too small to show in 16 bits add up in the master weights.

    x = cast(wte(idx) + wpe(positions), "bfloat16")
    weight, bias = in_dtype_of(x, layer.weight, layer.bias)

The first line casts the activations: from here on everything is 16-bit. The second rounds parameters where they meet
16-bit activations.

Saved: only x's type.

A pass of a model casts each of its parameters, 148 of them in GPT-2: as many launches, most of them shorter than the
time that a launch takes. So a model notes which parameters a pass casts, and the next pass rounds them all at its
beginning, in one launch (`casting_together`); the casts then only look up their results.

In a training loop even that is left out. `keep_rounded` makes copies in 16 bits that stay, and AdamW, which has each
new weight at hand, writes it there as well. A copy counts as long as nothing else has changed the parameter since
(`tinygpt.changes`); one that does not is rounded anew.

No oracle: this is a change of type, not composed of anything. The tests compare it with NumPy's, there and back.

Shapes: any. Tensors in float16 exist only on a GPU (`tinygpt.backends.precision` says why), and only the operations
that models use are made for 16 bits.
Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.1.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, overload

import numpy as np

from ..backends.precision import SIXTEEN_BITS, activation_dtype, is_16_bit
from ..changes import time_of_change
from ..errors import DtypeError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array, DTypeLike
from ._shapes import require_floating


@kernel
def rounded(x: Array, dtype: DTypeLike) -> Array:
    """x of any shape -> a new array of these numbers in `dtype`, a 16-bit type."""
    return x.astype(dtype)


class Cast(Function):
    def forward(self, x: Array, dtype: DTypeLike) -> Array:
        self.dtype = x.dtype
        made = _pass.made.get((id(x), dtype))
        return x.astype(dtype) if made is None else made

    def backward(self, dy: Array) -> Array:
        return dy.astype(self.dtype, copy=False)


class _Pass(threading.local):
    """The pass that `casting_together` is around in this thread."""

    noted: dict[int, Tensor] | None = None  # the parameters that it casts, by id
    made: Mapping[tuple[int, Any], Array] = MappingProxyType({})  # (id of an array, dtype) -> the array in dtype


_pass = _Pass()
_noted: weakref.WeakKeyDictionary[Any, dict[int, Tensor]] = weakref.WeakKeyDictionary()  # model -> of its last pass


class Rounded:
    """A copy in 16 bits of a parameter's array, which may be older than that."""

    def __init__(self, source: Array, array: Array) -> None:
        self.source, self.array = source, array
        self.is_current()

    def is_current(self) -> None:
        """`array` has just been written: it has the numbers that `source` has now."""
        self.time = time_of_change(self.source)

    def counts(self, dtype: Any) -> bool:
        return bool(self.array.dtype == dtype) and self.time == time_of_change(self.source)


_kept: weakref.WeakKeyDictionary[Any, dict[int, Rounded]] = weakref.WeakKeyDictionary()  # model -> by id of the source


def keep_rounded(model: Any, optimizer: Any) -> None:
    """Let the next pass of `model` find its parameters rounded. A training loop calls it before each step.

    optimizer: a `tinygpt.optim.Optimizer`; nothing is kept unless it writes into the copies that its slots have.
    """
    dtype, parameters = model.activations, [*_noted.get(model, {}).values()]
    if dtype is None or not parameters or not optimizer.keeps_rounded:
        return
    kept = _kept.setdefault(model, {})
    stale = [p.data for p in parameters if p.dtype == np.float32 and not _copy_counts(kept, p.data, dtype)]
    if not stale:
        return
    for source, array in zip(stale, rounded.each([(source, dtype) for source in stale]), strict=True):
        copy = kept.get(id(source))
        if copy is None or copy.source is not source or copy.array.dtype != dtype:
            kept[id(source)] = Rounded(source, array)
        else:  # the same place, which a CUDA graph may have recorded
            copy.array[...] = array
            copy.is_current()
    for slot in optimizer.slots:
        slot.rounded = kept.get(id(slot.parameter.data))


def _copy_counts(kept: Mapping[int, Rounded], source: Array, dtype: Any) -> bool:
    copy = kept.get(id(source))
    return copy is not None and copy.source is source and copy.counts(dtype)


def forget_rounded(model: Any, optimizer: Any) -> None:
    """Give back the memory of what `keep_rounded` has kept."""
    _kept.pop(model, None)
    for slot in optimizer.slots:
        slot.rounded = None


@contextlib.contextmanager
def casting_together(model: Any, dtype: np.dtype | None) -> Iterator[None]:
    """Cast up front, for a forward pass in the block, the parameters that the model's previous forward pass cast.

    dtype: of the activations, or None: then nothing is cast.
    """
    if dtype is None:
        yield
        return
    before = _pass.noted, _pass.made
    kept = {i: copy.array for i, copy in _kept.get(model, {}).items() if copy.counts(dtype)}
    arrays = [parameter.data for parameter in _noted.get(model, {}).values() if parameter.dtype == np.float32]
    arrays = [array for array in arrays if id(array) not in kept]
    made = rounded.each([(array, dtype) for array in arrays]) if arrays else []
    _pass.noted = {}
    _pass.made = {(i, dtype): array for i, array in kept.items()}
    _pass.made |= {(id(array), dtype): result for array, result in zip(arrays, made, strict=True)}
    try:
        yield
        _noted[model] = _pass.noted
    finally:
        _pass.noted, _pass.made = before


def cast(x: Tensor, dtype: DTypeLike) -> Tensor:
    """x in another floating-point type; x itself if it has that type already.

    x: any shape, floating-point. dtype: "float32", "float64", "bfloat16" or, on a GPU, "float16". Rounds to nearest;
    numbers too large for the type become infinity. Returns a tensor of x's shape. Raises DtypeError, UsageError.
    """
    require_floating("cast", x=x)
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name not in (*SIXTEEN_BITS, "float32", "float64"):
        raise DtypeError(f"cast: dtype must be float32, float64, bfloat16 or float16, not {dtype!r}")
    if name == x.dtype.name:
        return x
    target = activation_dtype(name, x.backend) if name in SIXTEEN_BITS else np.dtype(name)
    if _pass.noted is not None and x.is_leaf and x.requires_grad:
        _pass.noted[id(x)] = x
    return Cast.apply(x, dtype=target)


@overload
def in_dtype_of(x: Tensor, parameter: Tensor, /) -> Tensor: ...
@overload
def in_dtype_of(x: Tensor, parameter: Tensor, bias: Tensor | None, /, *others: Tensor | None) -> list[Any]: ...
def in_dtype_of(x: Tensor, *parameters: Tensor | None) -> Any:
    """The parameters, ready to be used with the activations x: cast to x's type if x is 16-bit, otherwise unchanged.

    Returns one tensor for one parameter, a list for several; None stays None.
    """
    met = [p if p is None or not is_16_bit(x.dtype) else cast(p, x.dtype) for p in parameters]
    return met if len(met) > 1 else met[0]
