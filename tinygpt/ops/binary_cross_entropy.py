"""Binary cross-entropy, from logits.

A logit x predicts "yes" with probability sigma(x) = 1 / (1 + exp(-x)). The target t in [0, 1] is the probability that
the true answer is yes:

    loss = -t * log(sigma(x)) - (1 - t) * log(1 - sigma(x))

Neither logarithm is safe, because sigma(x) rounds to 0 or 1 for large |x|. But log(sigma(x)) = -softplus(-x) and
log(1 - sigma(x)) = -softplus(x), with softplus(x) = log(1 + exp(x)), and softplus(-x) = softplus(x) - x. So

    loss = softplus(x) - t * x = max(x, 0) - t * x + log(1 + exp(-|x|))

Here the exponent is never positive, so exp can't overflow. And max(x, 0) - t * x is (1 - t) |x| for x > 0 and t |x|
otherwise, so nothing has to be subtracted and no digits are lost. The result is the mean over all elements.

Derivation of the gradient. softplus' = sigma, so with n elements

    dx = dloss / n * (sigma(x) - t)

In words, as for softmax: the predicted probability minus the true one.

Saved: logits and targets. Recomputing sigma takes one exp.

Shapes: logits and targets have the same shape; the result is a single number.
Source: Bishop, "Pattern Recognition and Machine Learning", 2006, section 4.3.2, equations 4.90 and 4.91.
"""

from __future__ import annotations

import numpy as np

from ..backends import array_module, from_host
from ..errors import DtypeError, RangeError, ShapeError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array, TensorLike
from ._arguments import as_scalar, plain_array
from ._shapes import require_floating


def binary_cross_entropy_composed(logits: Tensor, targets: Array) -> Tensor:
    """The oracle: the first formula, taken literally."""
    t = Tensor(targets)
    p = 1.0 / (1.0 + (-logits).exp())
    return (-(t * p.log()) - (1.0 - t) * (1.0 - p).log()).mean()


@kernel
def binary_cross_entropy_forward(logits: Array, targets: Array) -> Array:
    """logits, targets of one shape -> losses of that shape."""
    xp = array_module(logits)
    size = xp.abs(logits)
    return size * xp.where(logits > 0, 1.0 - targets, targets) + xp.log1p(xp.exp(-size))


@kernel
def binary_cross_entropy_backward(dlosses: Array, logits: Array, targets: Array) -> Array:
    """dlosses, logits, targets of one shape -> dlogits."""
    xp = array_module(logits)
    e = xp.exp(-xp.abs(logits))  # at most 1
    sigma = xp.where(logits >= 0, 1.0, e) / (1.0 + e)
    return dlosses * (sigma - targets)


class BinaryCrossEntropy(Function):
    def forward(self, logits: Array, targets: Array) -> Array:
        losses = binary_cross_entropy_forward(logits, targets)
        self.save(logits, targets)
        return as_scalar(losses.mean(dtype=np.float64), logits)

    def backward(self, dy: Array) -> Array:
        logits, targets = self.saved
        dlosses = array_module(dy).full(logits.shape, dy / logits.size, dtype=logits.dtype)
        return binary_cross_entropy_backward(dlosses, logits, targets)


def binary_cross_entropy(logits: Tensor, targets: TensorLike) -> Tensor:
    """The mean of -t log(sigma(x)) - (1 - t) log(1 - sigma(x)): PyTorch's binary_cross_entropy_with_logits.

    logits: any shape with at least one element; numbers before the sigmoid, not probabilities. targets: the same shape,
    numbers in [0, 1] (or booleans, or integers 0 and 1); a tensor, an array or nested lists. They get no gradient.
    Returns a single number. Raises ShapeError, DtypeError, RangeError.
    """
    require_floating("binary_cross_entropy", logits=logits)
    array = plain_array("binary_cross_entropy", "targets", targets)
    if array.dtype.kind not in "fiub":
        raise DtypeError(f"binary_cross_entropy: targets must be numbers in [0, 1], not {array.dtype}")
    if array.shape != logits.shape or logits.size == 0:
        raise ShapeError(
            f"binary_cross_entropy: logits and targets must have one shape with at least one element, "
            f"not {logits.shape} and {array.shape}"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that nan is refused too
        worst = low if not low >= 0.0 else high
        raise RangeError(f"binary_cross_entropy: targets must be in [0, 1], not {worst}")
    array = from_host("binary_cross_entropy", "targets", array, logits.data).astype(logits.dtype, copy=False)
    return BinaryCrossEntropy.apply(logits, targets=array)
