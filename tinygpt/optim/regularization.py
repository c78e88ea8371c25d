"""L1 and L2 penalties: terms to add to the loss.

    loss = model.loss(idx, targets) + regularization.l1(model.parameters(), 1e-5)

    l1:  strength * sum(|p|)            gradient  strength * sign(p)     (0 at p = 0, one of its subgradients)
    l2:  strength / 2 * sum(p**2)       gradient  strength * p

L1 pushes small weights to exactly zero; L2 shrinks all weights. With AdamW prefer `weight_decay`: Adam divides the
gradient of a penalty by sqrt(vhat) like any other gradient, so weights with large gradients are hardly regularised at
all.

A penalty is a single node over all the parameters given. Its sums accumulate in double precision.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..backends import array_module
from ..checks import number
from ..errors import UsageError
from ..function import Function
from ..tensor import Tensor
from ..typing import Array


class L1(Function):
    def forward(self, *parameters: Array, strength: float) -> Array:
        xp = array_module(parameters[0])
        self.save(*parameters)
        self.strength = strength
        total = sum(xp.abs(p).sum(dtype=xp.float64) for p in parameters)
        return xp.asarray(strength * total, dtype=parameters[0].dtype)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        xp = array_module(dy)
        return tuple(xp.asarray(dy * self.strength * xp.sign(p), dtype=p.dtype) for p in self.saved)


class L2(Function):
    def forward(self, *parameters: Array, strength: float) -> Array:
        xp = array_module(parameters[0])
        self.save(*parameters)
        self.strength = strength
        total = sum(xp.square(p, dtype=xp.float64).sum() for p in parameters)
        return xp.asarray(0.5 * strength * total, dtype=parameters[0].dtype)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        xp = array_module(dy)
        return tuple(xp.asarray(dy * self.strength * p, dtype=p.dtype) for p in self.saved)


def l1(parameters: Iterable[Tensor], strength: float) -> Tensor:
    """strength * sum of absolute values, over all parameters: a scalar tensor."""
    return _apply(L1, parameters, strength)


def l2(parameters: Iterable[Tensor], strength: float) -> Tensor:
    """strength / 2 * sum of squares, over all parameters: a scalar tensor."""
    return _apply(L2, parameters, strength)


def _apply(penalty: type[Function], parameters: Iterable[Tensor], strength: float) -> Tensor:
    where = penalty.__name__.lower()
    strength = number(where, "strength", strength, at_least=0)
    given = list(parameters)
    if not given:
        raise UsageError(f"{where}: there are no parameters to penalise")
    return penalty.apply(*given, strength=strength)
