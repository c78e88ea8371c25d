"""Cast: the same numbers in another floating-point type. Training in 16 bits is built on it.

    y = x, rounded to the nearest number of the other type

Derivation of the gradient. Rounding is a staircase, so its derivative is 0 almost everywhere, and the model would learn
nothing from it. What we want is the gradient of the smooth function that the staircase follows, the identity:

    dx = dy, in x's type

Between float32 and float64 this is the true derivative, up to rounding errors. For 16 bits it is what mixed precision
means: the model runs on rounded weights, and the float32 weights (the master weights) take the gradients of the rounded
ones as their own. Updates too small to show in 16 bits add up in the master weights.

    x = cast(wte(idx) + wpe(positions), "bfloat16")          activations: from here on everything is 16-bit
    weight, bias = in_dtype_of(x, layer.weight, layer.bias)  parameters: rounded where they meet 16-bit activations

Saved: only x's type.

Shapes: any. 16-bit tensors exist only on a GPU (`tinygpt.backends.precision` says why), and only the operations that
the model uses accept them: linear, layer_norm, residual_layer_norm, gelu, bias_gelu, dropout, attention, softmax,
cross_entropy, linear_cross_entropy, embedding, additions and products.
Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.1.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from ..backends.precision import SIXTEEN_BITS, activation_dtype, is_16_bit
from ..errors import DtypeError
from ..function import Function
from ..tensor import Tensor
from ..typing import Array, DTypeLike
from ._shapes import require_floating


class Cast(Function):
    def forward(self, x: Array, dtype: DTypeLike) -> Array:
        self.dtype = x.dtype
        return x.astype(dtype)

    def backward(self, dy: Array) -> Array:
        return dy.astype(self.dtype, copy=False)


def cast(x: Tensor, dtype: DTypeLike) -> Tensor:
    """x in another floating-point type; x itself if it has that type already.

    x: any shape, floating-point. dtype: "float32", "float64" or, on a GPU, "bfloat16" or "float16". Rounds to nearest;
    numbers too large for the type become infinity. Returns a tensor of x's shape. Raises DtypeError, UsageError.
    """
    require_floating("cast", x=x)
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name not in (*SIXTEEN_BITS, "float32", "float64"):
        raise DtypeError(f"cast: dtype must be float32, float64, bfloat16 or float16, not {dtype!r}")
    if name == x.dtype.name:
        return x
    target = activation_dtype(name, x.backend) if name in SIXTEEN_BITS else np.dtype(name)
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
