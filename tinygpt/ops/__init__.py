"""The differentiable operations, one file each.

Every file reads in the same order: the mathematics, the composed oracle, the reference kernels, the
`Function`, the public function.
"""

from __future__ import annotations

from . import _bind
from .arithmetic import add, div, mul, neg, pow, sub
from .concatenate import concatenate, split, stack
from .elementwise import exp, log, relu, sigmoid, sqrt, tanh
from .getitem import getitem
from .layer_norm import layer_norm
from .linear import linear
from .matmul import matmul
from .reductions import max, mean, sum, var
from .shape import reshape, transpose
from .where import where

__all__ = [
    "add",
    "concatenate",
    "div",
    "exp",
    "getitem",
    "layer_norm",
    "linear",
    "log",
    "matmul",
    "max",
    "mean",
    "mul",
    "neg",
    "pow",
    "relu",
    "reshape",
    "sigmoid",
    "split",
    "sqrt",
    "stack",
    "sub",
    "sum",
    "tanh",
    "transpose",
    "var",
    "where",
]

_bind.bind(globals())
