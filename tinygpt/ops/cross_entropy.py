"""Cross-entropy of integer targets, from logits.

Row i holds V logits x_i. Softmax turns them into probabilities p_i, and the row's loss is -log of the target's p:

    lse_i  = log(sum over j of exp(x_ij)) = m_i + log(sum over j of exp(x_ij - m_i)),   m_i = max over j of x_ij
    loss_i = lse_i - x_i,target_i = (m_i - x_i,target_i) + log(sum over j of exp(x_ij - m_i))
    loss   = sum over i of [target_i != ignore_index] loss_i / count

count is the number of rows whose target is not ignore_index, so the loss is the mean over these rows.

(The second line is -log(exp(x_t) / sum(exp(x))). Subtracting the maximum keeps exp from overflowing and does not change
the result. The loss is computed in the second form, since adding the logarithm to a large m_i would lose its digits.)

Derivation of the gradient. d lse_i / d x_ij = exp(x_ij) / sum(exp(x_i)) = exp(x_ij - lse_i) = p_ij, so

    dx_ij = [target_i != ignore_index] dloss_i (p_ij - [j = target_i])

In words: the predicted probabilities minus the right ones, which are 1 for the target and 0 for everything else.

Saved: logits, targets, lse. p = exp(logits - lse) takes one exp, so the forward pass does not save the probabilities.
lse is stored as two numbers for each row, near + rest (_two_parts.py). Adding a constant to all logits of a row must
not change p, but with large logits, an lse rounded to one number would make p wrong by a large factor. So
p = exp(logits - near) * exp(-rest).

`cross_entropy_inplace` is for a caller that owns the logits and wants the loss and the gradient at once (see
linear_cross_entropy.py): it overwrites the logits with scale * dloss_i/dx_ij.

Shapes: logits (..., V), targets (...) integers; inside, N rows; lse (N, 2).
Source: Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs", 1990; the log-sum-exp form
as in Blanchard, Higham, Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical
Analysis, 2021.
"""

from __future__ import annotations

import numpy as np

from ..backends import array_module, from_host
from ..errors import DtypeError, RangeError, ShapeError, UsageError
from ..function import Function
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array, Ids, Shape
from ._arguments import as_scalar, integer_array
from ._shapes import require_floating
from ._two_parts import two_parts

IGNORE_INDEX = -100  # the loss ignores targets with this value


def cross_entropy_composed(logits: Tensor, targets: Array, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The oracle: log-softmax, the target's entry of each row that is not ignored, and the mean, of primitive ops."""
    xp = array_module(logits.data)
    rows = logits.reshape(-1, logits.shape[-1])  # (N, V)
    targets = targets.reshape(-1)
    counted = xp.flatnonzero(targets != ignore_index)
    shifted = rows - Tensor(rows.data.max(axis=1, keepdims=True))  # (N, V) the shift does not change softmax
    log_probabilities = shifted - shifted.exp().sum(axis=1, keepdims=True).log()  # (N, V)
    return -log_probabilities[counted, targets[counted]].mean()


@kernel(statistics={"losses": 0, "lse": 1})
def cross_entropy_forward(logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array]:
    """logits (N, V), targets (N,) -> losses (N,), 0 where ignored; lse (N, 2)."""
    xp = array_module(logits)
    m = logits.max(axis=1)  # (N,)
    total = xp.exp(logits - m[:, None]).sum(axis=1, dtype=xp.float64)  # (N,)
    m, log_total = m.astype(xp.float64), xp.log(total)  # (N,)
    counted = targets != ignore_index  # (N,)
    picked = logits[xp.arange(len(targets)), xp.where(counted, targets, 0)]  # (N,)
    losses = xp.where(counted, (m - picked) + log_total, 0.0)  # (N,)
    return losses.astype(logits.dtype), two_parts(m, log_total, logits.dtype)


@kernel
def cross_entropy_backward(dlosses: Array, logits: Array, targets: Array, lse: Array, ignore_index: int) -> Array:
    """dlosses (N,), logits (N, V), targets (N,), lse (N, 2) -> dlogits (N, V)."""
    xp = array_module(logits)
    near, rest = lse[:, :1], lse[:, 1:]  # (N, 1)
    dlogits = xp.exp(logits - near)  # (N, V)
    dlogits *= xp.exp(-rest)  # (N, V) the probabilities
    counted = targets != ignore_index  # (N,)
    dlogits[xp.arange(len(targets)), xp.where(counted, targets, 0)] -= 1.0
    dlogits *= xp.where(counted, dlosses, 0.0).astype(logits.dtype)[:, None]
    dlogits[~counted] = 0.0  # by assignment, since 0 times infinity is nan
    return dlogits


@kernel(in_place=True, statistics={"losses": 0})
def cross_entropy_inplace(logits: Array, targets: Array, ignore_index: int, scale: float) -> Array:
    """logits (N, V), targets (N,) -> losses (N,). OVERWRITES logits with scale * d loss_i / d logits."""
    xp = array_module(logits)
    counted = targets != ignore_index  # (N,)
    chosen = (xp.arange(len(targets)), xp.where(counted, targets, 0))
    logits -= logits.max(axis=1, keepdims=True)
    picked = logits[chosen].astype(xp.float64)  # (N,)
    xp.exp(logits, out=logits)
    total = logits.sum(axis=1, dtype=xp.float64)  # (N,)
    logits *= (scale / total).astype(logits.dtype)[:, None]
    logits[chosen] -= scale
    logits[~counted] = 0.0
    return xp.where(counted, xp.log(total) - picked, 0.0).astype(logits.dtype)


class CrossEntropy(Function):
    def forward(self, logits: Array, targets: Array, ignore_index: int, count: int) -> Array:
        rows = logits.reshape(-1, logits.shape[-1])  # (N, V)
        losses, lse = cross_entropy_forward(rows, targets, ignore_index)
        self.save(logits, targets, lse)
        self.ignore_index, self.count = ignore_index, count
        return as_scalar(losses.sum(dtype=np.float64), logits, count)

    def backward(self, dy: Array) -> Array:
        logits, targets, lse = self.saved
        rows = logits.reshape(-1, logits.shape[-1])  # (N, V)
        dlosses = array_module(dy).full(targets.shape, dy / self.count, dtype=lse.dtype)  # (N,)
        return cross_entropy_backward(dlosses, rows, targets, lse, self.ignore_index).reshape(logits.shape)


def check_targets(
    operation: str, targets: Ids, leading: Shape, V: int, ignore_index: int, like: Tensor
) -> tuple[Array, int]:
    """Targets of shape `leading` as (N,) integers on `like`'s backend, and how many are not ignored.

    Raises ShapeError, DtypeError, RangeError, UsageError.
    """
    targets = integer_array(operation, "targets", targets)
    if targets.shape != leading:
        raise ShapeError(f"{operation}: targets must have shape {leading}, one for each row, not {targets.shape}")
    if not isinstance(ignore_index, (int, np.integer)):
        raise DtypeError(f"{operation}: ignore_index must be an integer, not {ignore_index!r}")
    if not -(2**63) <= ignore_index < 2**63:
        raise RangeError(f"{operation}: ignore_index must be a 64-bit integer, not {ignore_index}")
    targets = targets.reshape(-1)
    xp = array_module(targets)
    counted = targets != ignore_index  # (N,)
    count = int(xp.count_nonzero(counted))
    if count == 0:
        raise UsageError(
            f"{operation}: no target is left to average over: all {targets.size} are ignore_index ({ignore_index}) "
            "or there are none: skip such a batch"
        )
    used = xp.where(counted, targets, 0)
    low, high = int(used.min()), int(used.max())
    if low < 0 or high >= V:
        worst = low if -low > high - (V - 1) else high
        raise RangeError(
            f"{operation}: targets must be in 0 .. {V - 1} (the logits have {V} classes) "
            f"or ignore_index ({ignore_index}), not {worst}"
        )
    return from_host(operation, "targets", targets, like.data), count


def cross_entropy(logits: Tensor, targets: Ids, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """-log(softmax(logits)[target]), averaged over the targets that are not ignore_index.

    logits: (..., V). targets: (...) integers in 0 .. V - 1 or ignore_index; a tensor, an array or a list.
    Returns a single number. If every target is ignored there is no mean, and it raises UsageError: 0 would look like a
    perfect model, and nan would spread into the weights. Raises ShapeError, DtypeError, RangeError as well.
    """
    require_floating("cross_entropy", logits=logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ShapeError(f"cross_entropy: logits must be (..., V) with at least one class, not {logits.shape}")
    targets, count = check_targets("cross_entropy", targets, logits.shape[:-1], logits.shape[-1], ignore_index, logits)
    return CrossEntropy.apply(logits, targets=targets, ignore_index=int(ignore_index), count=count)
