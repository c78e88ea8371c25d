"""Cast: the same numbers in another floating-point type; the seam of training in 16 bits.

    y = x, rounded to the nearest number of the other type

Derivation of the gradient. Rounding is a staircase: its derivative is 0 nearly everywhere, which would teach nothing.
What is wanted is the gradient of the smooth function that rounding stands in for, the identity:

    dx = dy, in x's type

Between float32 and float64 that is the derivative up to rounding errors; for 16 bits it is the definition of what mixed
precision computes: the model runs on the rounded weights, and the weights in float32 (the master weights) take the
gradients as their own. Steps that are too small to show in 16 bits add up there.

    x = cast(wte(idx) + wpe(positions), "bfloat16")          activations: from here on everything has 16 bits
    weight, bias = in_dtype_of(x, layer.weight, layer.bias)  parameters: rounded where they meet such activations

Saved: nothing but x's type.

Shapes: any. Tensors of 16 bits are on a GPU alone (`tinygpt.backends.precision` says why), and it is the operations of
the model that take them: linear, layer_norm, residual_layer_norm, gelu, bias_gelu, dropout, attention, softmax,
cross_entropy, linear_cross_entropy, embedding, additions and products.
Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.precision import SIXTEEN_BITS, activation_dtype, is_16_bit
from ..errors import DtypeError
from ..function import Function
from ..tensor import Tensor
from ._shapes import require_floating


class Cast(Function):
    def forward(self, x: Any, dtype: Any) -> Any:
        self.dtype = x.dtype
        return x.astype(dtype)

    def backward(self, dy: Any) -> Any:
        return dy.astype(self.dtype, copy=False)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another floating-point type; x itself when it has that type already.

    x: any shape, floating. dtype: "float32", "float64" or, on a GPU, "bfloat16" or "float16". Rounds to nearest; beyond
    the type's largest number is infinity. Returns a tensor of x's shape. Raises DtypeError, UsageError.
    """
    require_floating("cast", x=x)
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name not in (*SIXTEEN_BITS, "float32", "float64"):
        raise DtypeError(f"cast: dtype must be float32, float64, bfloat16 or float16, not {dtype!r}")
    if name == x.dtype.name:
        return x
    target = activation_dtype(name, x.backend) if name in SIXTEEN_BITS else np.dtype(name)
    return Cast.apply(x, dtype=target)


def in_dtype_of(x: Tensor, *parameters: Tensor | None) -> Any:
    """Parameters as they meet the activations x: cast to 16 bits if x has 16 bits, otherwise as they are.

    One parameter gives one tensor, several a list; None stays None.
    """
    met = [p if p is None or not is_16_bit(x.dtype) else cast(p, x.dtype) for p in parameters]
    return met if len(met) > 1 else met[0]
