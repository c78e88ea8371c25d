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

from typing import Any

from ..checks import number
from ..errors import UsageError
from ..typing import Array
from .optimizer import Optimizer, Parameters, Slot


class SGD(Optimizer):
    """SGD over `parameters` (tensors, (name, tensor) pairs or groups: see `tinygpt.optim.optimizer`).

    momentum: in [0, 1). nesterov: needs momentum above 0. weight_decay, l1, l2: act on matrices only. A group may set
    its own momentum and nesterov.
    """

    group_settings = ("momentum", "nesterov")
    coupled_decay = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        self.where = "SGD"
        self.momentum: float = self._check_setting("momentum", momentum)
        self.nesterov: bool = self._check_setting("nesterov", nesterov)
        super().__init__(parameters, lr, weight_decay, l1, l2)
        for momentum, nesterov in [(self.momentum, self.nesterov), *map(self._momentum, self.slots)]:
            if nesterov and momentum == 0:
                raise UsageError("SGD: nesterov=True needs a momentum above 0")

    def _check_setting(self, name: str, value: Any) -> Any:
        return bool(value) if name == "nesterov" else number(self.where, name, value, at_least=0, below=1)

    def _momentum(self, slot: Slot) -> tuple[float, bool]:
        return self._setting(slot, "momentum"), self._setting(slot, "nesterov")

    def _state_names(self, slot: Slot) -> tuple[str, ...]:
        return ("velocity",) if self._setting(slot, "momentum") else ()

    def _update(self, slot: Slot, grad: Array, grad_scale: float) -> None:
        param = slot.parameter.data
        grad = grad * grad_scale
        momentum, nesterov = self._momentum(slot)
        if momentum:
            velocity = slot.state["velocity"]
            velocity *= momentum
            velocity += grad
            grad = grad + momentum * velocity if nesterov else velocity
        param -= (self.lr * slot.lr_scale) * grad
