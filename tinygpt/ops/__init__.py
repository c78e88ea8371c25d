"""The differentiable operations, one file each.

Every file has the same order: the mathematics; the oracle, which composes the operation from primitive ones for the
tests to compare with; the reference kernels; the `Function`; the public function. `tinygpt.ops` consists of the
functions that are imported here.

Notation, the same in every file:

- `dx`: dL/dx, of x's shape, where L is the scalar on which backward() was called
- `[i = j]`: 1 where i equals j, otherwise 0 (the Kronecker delta), and likewise for any other condition in brackets
- `keep`: a mask of dropout, 1 for an element that is kept, 0 for one that is dropped
- `x.T`: the transpose; `a b` of two matrices, like `a @ b`, is their product
- `unbroadcast(dy, shape)`: the sum of dy over the axes along which broadcasting repeated an operand of that shape
  (`_shapes.py`)

L never appears in the formulas: an operation is handed dy = dL/dy and returns dx = dL/dx. If L was not a scalar, and
backward(grad) was called on a tensor z, read L as the sum of grad * z.
"""

# ruff: noqa: F401

from __future__ import annotations

from types import FunctionType

from . import _bind
from .arithmetic import add, div, mul, neg, pow, sub
from .attention import attention, qkv_attention
from .bias_gelu import bias_gelu
from .binary_cross_entropy import binary_cross_entropy
from .cast import cast, in_dtype_of
from .concatenate import concatenate, split, stack
from .cross_entropy import cross_entropy
from .dropout import dropout
from .elementwise import abs, exp, log, relu, sigmoid, sqrt, tanh
from .embedding import embedding
from .erf import erf
from .gelu import gelu
from .getitem import getitem
from .layer_norm import layer_norm
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .matmul import matmul
from .reductions import argmax, max, mean, min, sum, var
from .residual_layer_norm import residual_layer_norm
from .rms_norm import rms_norm
from .shape import reshape, transpose
from .silu import silu
from .softmax import log_softmax, softmax
from .where import where

__all__ = sorted(name for name, value in globals().items() if isinstance(value, FunctionType))

_bind.bind(globals())
