"""The two linear layers of a transformer's MLP and the GELU between them as one operation, for a GPU in 16 bits.

    z = x W + b        h = gelu(z)        y = h V

It is what linear.py, bias_gelu.py and linear.py compute one after the other. As one operation, the GELU can be a part
of the product before it, and its derivative a part of the gradient's product after it, which saves two passes over the
model's largest activation (`backends/cupy_epilogues.py`). A separate operation could not: the product that gives dh
belongs to the second layer, z to the first.

Derivation of the gradient. The chain rule through the three lines, with gelu' as in gelu.py:

    dV = h.T dy        dz = gelu'(z) * (dy V.T)        dW = x.T dz        db = column sums of dz        dx = dz W.T

Saved: x, z, h and the two matrices. h is not recomputed from z, as it is after bias_gelu.py: the product takes the GELU
of sums that are not yet rounded to 16 bits, so h would have other bits.

Where cuBLASLt has no algorithm, and on a CPU, the same lines are plain products and kernels.

Shapes: x (..., C), W (C, I), V (I, C), b (I,), which may be left out -> y (..., C). Inside, N rows.
Source: those of linear.py and gelu.py.
"""

from __future__ import annotations

from typing import Any

from ..backends import epilogues
from ..function import Function
from ..tensor import Tensor
from ..typing import Array
from ._matmul import matmul_arrays
from .gelu import gelu_backward, gelu_composed, gelu_forward
from .linear import add_bias, gradients, linear_composed


def gelu_mlp_composed(x: Tensor, W: Tensor, V: Tensor, b: Tensor | None = None) -> Tensor:
    return linear_composed(gelu_composed(linear_composed(x, W, b)), V)


def fuses_gelu(x: Tensor, with_bias: bool) -> bool:
    """Whether there are products with a GELU for such activations. Otherwise three operations are as fast."""
    fused = epilogues(x.data)
    return fused is not None and bool(fused.has_gelu(x.dtype, with_bias))


class GeluMLP(Function):
    def forward(self, x: Array, W: Array, V: Array, *b: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])  # (N, C)
        fused = epilogues(x)
        made = fused.linear_gelu(rows, W, b[0] if b else None) if fused is not None else None
        if made is None:
            z = matmul_arrays(rows, W)  # (N, I)
            z = add_bias(z, b[0]) if b else z
            h = gelu_forward(z)  # (N, I)
        else:
            h, z = made
        self.save(x, W, V, z, h)
        return matmul_arrays(h, V).reshape(*x.shape[:-1], V.shape[1])

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, W, V, z, h = self.saved
        rows = dy.reshape(-1, dy.shape[-1])  # (N, C)
        dV = matmul_arrays(h.T, rows, float32_result=True) if self.needs[2] else None  # (I, C)
        del h
        dz = gelu_gradient(rows, V, z)  # (N, I)
        dW, db = gradients(x.reshape(-1, x.shape[-1]), dz, self.needs[1], self.needs[3:] == (True,))  # (C, I), (I,)
        dx = matmul_arrays(dz, W.T).reshape(x.shape) if self.needs[0] else None
        return (dx, dW, dV, db)[: len(self.needs)]


def gelu_gradient(dy: Array, V: Array, z: Array) -> Array:
    """dy (N, C), V (I, C), z (N, I) -> gelu'(z) * (dy V.T) (N, I)."""
    fused = epilogues(dy)
    dz: Any = fused.gelu_gradient(dy, V, z) if fused is not None else None
    if dz is None:
        dh = matmul_arrays(dy, V.T)  # (N, I)
        dz = gelu_backward(dh, z, dh)
    return dz


def gelu_mlp(x: Tensor, W: Tensor, V: Tensor, b: Tensor | None = None) -> Tensor:
    """gelu(x W + b) V in the tanh form. x (..., C), W (C, I), V (I, C), b (I,) or None."""
    return GeluMLP.apply(x, W, V, *([] if b is None else [b]))
