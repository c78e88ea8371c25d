"""The output head and its cross-entropy in one operation, which never holds all the logits at once.

    logits = x @ weight.T          loss = cross_entropy(logits, targets)

For GPT-2 the logits of 1,024 tokens take 206 MB, and so does their gradient; nothing else in the model is as large.
So we process the rows in blocks, and each block of logits is overwritten by its own gradient.

Derivation of the gradient. Let dlogits_ij = (p_ij - [j = target_i]) / count be the gradient of the loss with respect to
the logits of row i (cross_entropy.py). Then, as for any linear map,

    dx = dloss * dlogits @ weight          dweight = dloss * dlogits.T @ x

Usually a backward pass has to wait for the upstream gradient. But the loss is a scalar, so its gradient dloss is a
single number, which factors out of both products. This lets the forward pass compute the gradients for dloss = 1 while
it has each block of logits; the backward pass only multiplies them by dloss, and skips even that if dloss is 1.

In 16 bits, the logits and dx are 16-bit arrays; dweight, which is a sum over all rows, and the loss are float32. But
float16 has no numbers between 0 and 6e-8, and the factor 1 / count would make many gradients underflow. So for float16
the forward pass leaves that factor out of dx and dweight, and the backward pass multiplies them by dloss / count, in
float32. dloss includes the loss scale by then, which keeps the products from underflowing.

Saved: dx and dweight for dloss = 1, as large as x and weight, and x, weight and targets themselves (which exist
anyway). The first backward pass scales dx and dweight in place and gives them away, so nothing is copied. A second one,
through a retained graph, finds them gone and recomputes them. Without gradients (`no_grad`) nothing is saved.

In 16 bits, rows of logits are padded to a multiple of 64: the tensor cores need rows that begin at multiples of 16
bytes, and GPT-2's V = 50257 is odd (on an H200 its products ran at a fifth of the speed). weight is padded with rows of
zeros, and the logits that come from these are overwritten with -infinity, so their probabilities and gradients are 0.
On a CPU a multiple of 2 is enough: the product reads two neighbours at a time.

Shapes: x (..., C), weight (V, C) like an embedding table, targets (...). Inside: N rows in blocks of R; each row has V
logits or, if padded, P.
Source: cross_entropy.py; the gradient in the forward pass: Hsu et al., "Liger Kernel: Efficient Triton
Kernels for LLM Training", 2024, under FusedLinearCrossEntropy.
"""

from __future__ import annotations

import numpy as np

from ..backends import array_module, as_factor, name_of, room
from ..backends.precision import is_16_bit, statistics_dtype, upcast
from ..backends.recording import noted
from ..errors import ShapeError
from ..function import Function
from ..tensor import Tensor
from ..typing import Array, Ids
from ._arguments import as_scalar, require_same_dtype
from ._matmul import add_matmul, matmul_arrays
from .cross_entropy import (
    IGNORE_INDEX,
    check_targets,
    cross_entropy_composed,
    cross_entropy_forward,
    cross_entropy_inplace,
)

# How many bytes of logits exist at once on a CPU; on a GPU it is a share of its memory (`backends.room`). Each block
# reads weight twice and adds to dweight once, so small blocks are slow: GPT-2's head takes 2.54 s of one thread with
# blocks of 64 MB (256 rows), 2.59 with 128 MB, 2.65 with 32 MB.
BLOCK_BYTES = 64 * 2**20


def linear_cross_entropy_composed(
    x: Tensor, weight: Tensor, targets: Array, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """The oracle: the matrix product, then a cross-entropy of primitive operations."""
    return cross_entropy_composed(x @ weight.transpose(), targets, ignore_index)


def blocks(N: int, V: int, itemsize: int, times: int = 1) -> list[slice]:
    """Rows 0 .. N - 1 split into equal blocks (the last may be shorter) of at most times * BLOCK_BYTES of logits."""
    count = -(-N * V * itemsize // (times * BLOCK_BYTES))
    R = -(-N // max(1, min(count, N)))
    return [slice(start, min(start + R, N)) for start in range(0, N, R)]


def loss_only(x: Array, weight: Array, targets: Array, ignore_index: int) -> float:
    """x (N, C), weight (V, C), targets (N,) -> the sum of the rows' losses."""
    total = 0.0
    for rows in blocks(len(x), len(weight), x.itemsize, room(x)):
        losses, _ = cross_entropy_forward(matmul_arrays(x[rows], weight.T), targets[rows], ignore_index)  # (R,)
        total = with_sum(total, losses)
    return total


@noted
def with_sum(total: float, losses: Array) -> float:
    """The total with the losses added, in double precision."""
    return total + losses.sum(dtype=np.float64)


def loss_and_gradients(
    x: Array, weight: Array, targets: Array, ignore_index: int, scale: float, needs: tuple[bool, ...]
) -> tuple[float, Array | None, Array | None]:
    """Like loss_only, plus the gradients of scale * that sum: dx (N, C), dweight (V, C); None if not needed."""
    xp, V = array_module(x), len(weight)
    total = 0.0
    weight = padded(weight)  # (P, C)
    dx = xp.empty(x.shape, x.dtype) if needs[0] else None  # (N, C)
    dweight = xp.empty((V, weight.shape[1]), statistics_dtype(weight.dtype)) if needs[1] else None  # (V, C)
    parts = blocks(len(x), len(weight), x.itemsize, room(x))
    buffer = xp.empty((parts[0].stop, len(weight)), dtype=x.dtype)  # (R, P) the one block of logits
    for rows in parts:
        logits = matmul_arrays(x[rows], weight.T, out=buffer[: rows.stop - rows.start])  # (R, P)
        if len(weight) > V:
            logits[:, V:] = -np.inf
        losses = cross_entropy_inplace(logits, targets[rows], ignore_index, scale)  # (R,)
        total = with_sum(total, losses)
        dlogits = logits  # (R, P) overwritten by the line before the last
        if dx is not None:
            matmul_arrays(dlogits, weight, out=dx[rows])
        if dweight is not None:
            multiply = matmul_arrays if rows.start == 0 else add_matmul
            multiply(dlogits[:, :V].T, x[rows], out=dweight)
    return total, dx, dweight


def padded(weight: Array) -> Array:
    """weight (V, C) -> (P, C): if 16-bit, padded with rows of zeros to a multiple of 64 (2 on a CPU); otherwise
    unchanged."""
    V, C = weight.shape
    multiple = 2 if name_of(weight) == "numpy" else 64
    P = -(-V // multiple) * multiple
    if not is_16_bit(weight.dtype) or P == V:
        return weight
    xp = array_module(weight)
    made = xp.zeros((P, C), weight.dtype)
    made[:V] = weight
    return made


class LinearCrossEntropy(Function):
    def forward(self, x: Array, weight: Array, targets: Array, ignore_index: int, count: int) -> Array:
        rows = x.reshape(-1, x.shape[-1])  # (N, C)
        self.gradients: tuple[Array | None, Array | None] | None = None
        if not any(self.needs):
            return as_scalar(loss_only(rows, weight, targets, ignore_index), x, count)
        in_time = x.dtype.name != "float16"  # whether 1 / count is a part of the gradients now, not in `backward`
        self.scale, self.later = (1.0 / count, 1.0) if in_time else (1.0, 1.0 / count)
        total, *gradients = loss_and_gradients(rows, weight, targets, ignore_index, self.scale, self.needs)
        self.gradients = (gradients[0], gradients[1])
        self.save(x, weight, targets)
        self.ignore_index = ignore_index
        return as_scalar(total, x, count)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        x, weight, targets = self.saved
        if self.gradients is None:  # given away by an earlier pass through a retained graph
            rows = x.reshape(-1, x.shape[-1])  # (N, C)
            _, dx, dweight = loss_and_gradients(rows, weight, targets, self.ignore_index, self.scale, self.needs)
        else:
            dx, dweight = self.gradients
            self.gradients = None  # from here on the engine owns them and may write into them
        dx, dweight = (None if d is None else scaled(d, as_factor(dy) * self.later) for d in (dx, dweight))
        return None if dx is None else dx.reshape(x.shape), dweight


def scaled(gradient: Array, factor: Array) -> Array:
    """gradient * factor, in place if possible; 16-bit gradients are multiplied in float32."""
    if not isinstance(factor, float) or factor != 1.0:
        product = upcast(gradient)
        product *= factor
        gradient = product.astype(gradient.dtype, copy=False)
    return gradient


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Ids, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """cross_entropy(x @ weight.T, targets) without ever holding all the logits.

    x: (..., C). weight: (V, C), an embedding table. targets: (...) integers in 0 .. V - 1 or ignore_index.
    Returns a single number, the mean over the targets that are not ignored. Raises UsageError if all are ignored,
    ShapeError, DtypeError, RangeError.
    """
    require_same_dtype("linear_cross_entropy", x=x, weight=weight)
    if x.ndim == 0 or weight.ndim != 2 or 0 in weight.shape or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear_cross_entropy: x (..., C) and weight (V, C) must share C, with V and C >= 1, "
            f"not {x.shape} and {weight.shape}"
        )
    targets, count = check_targets("linear_cross_entropy", targets, x.shape[:-1], weight.shape[0], ignore_index, x)
    return LinearCrossEntropy.apply(x, weight, targets=targets, ignore_index=int(ignore_index), count=count)
