"""The residual stream: x, to which each layer of a transformer adds its output.

    x = ResidualStream(x)
    x.add(attention, x.norm(ln_1), dropout)         x = x + dropout(attention(ln_1(x)))
    x.add(mlp, x.norm(ln_2), dropout)               x = x + dropout(mlp(ln_2(x)))

An addition is deferred until the following norm asks for the sum. Both then run as one operation, in a single pass over
memory, together with dropout and the bias of the layer's last projection. So a layer of this package that ends in a
projection has a method `branch`, which returns its output without that bias, and the bias. A user-defined layer is
simply called.
"""

from __future__ import annotations

from typing import Any

from .. import ops
from ..graph import mode
from ..ops.cached_attention import KeyValueCache
from ..tensor import Tensor
from .known import computes_as, computes_as_defined, takes_cache
from .layers import Dropout, LayerNorm
from .packed import with_bias
from .recompute import recompute, recompute_branch


class ResidualStream:
    """x (B, T, C), and the pending addition. again: run the layers again in the backward pass (`recompute.py`)."""

    def __init__(self, x: Tensor, again: bool = False) -> None:
        self.x, self.again = x, again and mode.grad_enabled
        self.pending: tuple[Tensor, Tensor | None, Any] | None = None  # branch, its bias, dropout

    def add(self, layer: Any, h: Tensor, dropout: Any, cache: KeyValueCache | None = None) -> None:
        """x = x + dropout(layer(h)), computed when x is next needed."""
        if hasattr(layer, "branch") and computes_as_defined(layer):
            if self.again and cache is None:
                branch, bias = recompute_branch(layer, h)
            else:
                branch, bias = layer.branch(h) if cache is None else layer.branch(h, cache)
        else:
            branch, bias = call(layer, h, cache), None
        self.pending = branch, bias, dropout
        if cache is not None and cache.last_only:
            self.x, self.pending = cache.last(self.x), (cache.last(branch), bias, dropout)

    def value(self) -> Tensor:
        """x, including the pending addition."""
        if self.pending is not None:
            (branch, bias, dropout), self.pending = self.pending, None
            self.x = self.x + dropout(with_bias(branch, bias))
        return self.x

    def norm(self, layer: Any) -> Tensor:
        """layer(x)."""
        if self.pending is None or not (computes_as(layer, LayerNorm) and computes_as(self.pending[2], Dropout)):
            return layer(self.value())
        (branch, x_bias, dropout), self.pending = self.pending, None
        weight, bias, x_bias = ops.in_dtype_of(self.x, layer.weight, layer.bias, x_bias)
        self.x, h = ops.residual_layer_norm(
            self.x, branch, weight, bias, x_bias, layer.eps, dropout.p, dropout.training, dropout.generator
        )
        return h

    def through(self, block: Any, cache: KeyValueCache | None = None) -> None:
        """x = block(x). A block of this package has a method `extend`, which leaves its last addition pending."""
        if hasattr(block, "extend") and computes_as_defined(block):
            block.extend(self, cache)
        elif self.again and cache is None:
            self.x = recompute(block, self.value())
        else:
            self.x = call(block, self.value(), cache)


def call(layer: Any, x: Tensor, cache: KeyValueCache | None) -> Tensor:
    """Call a user-defined layer, with the cache if it takes one."""
    y: Tensor = layer(x, cache=cache) if cache is not None and takes_cache(layer.forward) else layer(x)
    return y
