"""Stochastic gradient descent, with momentum.

    g        = gradient + weight_decay * p
    velocity = momentum * velocity + g
    p        = p - lr * velocity                       plain momentum
    p        = p - lr * (g + momentum * velocity)      Nesterov momentum: looks one step ahead along the velocity

Without momentum there is no velocity, and the step is p - lr * g. Here weight decay is part of the gradient, so it is
the same as the L2 penalty weight_decay / 2 * sum(p**2); in AdamW it is not (see adamw.py).

Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", 2013,
section 2, with lr outside the velocity, as in PyTorch, so that a change of lr takes effect at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checks import number
from ..errors import UsageError

if TYPE_CHECKING:
    from .optimizer import Parameters
from ..typing import Array
from .optimizer import Optimizer, Slot


class SGD(Optimizer):
    """SGD over `parameters` (tensors, (name, tensor) pairs or groups: see `tinygpt.optim.optimizer`).

    momentum: in [0, 1). nesterov: needs momentum above 0. weight_decay: acts on matrices only.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.momentum = number("SGD", "momentum", momentum, at_least=0, below=1)
        self.nesterov = bool(nesterov)
        if self.nesterov and self.momentum == 0:
            raise UsageError("SGD: nesterov=True needs a momentum above 0")
        self.state_names = ("velocity",) if self.momentum else ()
        super().__init__(parameters, lr, weight_decay)

    def _update(self, slot: Slot, grad: Array, grad_scale: float) -> None:
        param = slot.parameter.data
        grad = grad * grad_scale + slot.weight_decay * param
        if self.momentum:
            velocity = slot.state["velocity"]
            velocity *= self.momentum
            velocity += grad
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        param -= (self.lr * slot.lr_scale) * grad
