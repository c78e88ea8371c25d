"""The differentiable operations, one file each.

Every file reads in the same order: the mathematics, the composed oracle, the reference kernels, the
`Function`, the public function.
"""

from __future__ import annotations

from . import _bind
from .arithmetic import add, div, mul, neg, pow, sub
from .attention import attention, qkv_attention
from .bias_gelu import bias_gelu
from .binary_cross_entropy import binary_cross_entropy
from .cast import cast, in_dtype_of
from .concatenate import concatenate, split, stack
from .cross_entropy import cross_entropy
from .dropout import dropout
from .elementwise import exp, log, relu, sigmoid, sqrt, tanh
from .embedding import embedding
from .erf import erf
from .gelu import gelu
from .getitem import getitem
from .layer_norm import layer_norm
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .matmul import matmul
from .reductions import max, mean, sum, var
from .residual_layer_norm import residual_layer_norm
from .shape import reshape, transpose
from .softmax import log_softmax, softmax
from .where import where

__all__ = [
    "add",
    "attention",
    "bias_gelu",
    "binary_cross_entropy",
    "cast",
    "concatenate",
    "cross_entropy",
    "div",
    "dropout",
    "embedding",
    "erf",
    "exp",
    "gelu",
    "getitem",
    "in_dtype_of",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "mean",
    "mul",
    "neg",
    "pow",
    "qkv_attention",
    "relu",
    "reshape",
    "residual_layer_norm",
    "sigmoid",
    "softmax",
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
