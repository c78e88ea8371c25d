"""Lion: every weight moves by exactly lr, in the direction of a sign.

    p = p - lr * weight_decay * p                        (decoupled, as in AdamW)
    p = p - lr * sign(beta1 m + (1 - beta1) g)
    m = beta2 m + (1 - beta2) g

The direction gives the newest gradient the weight 1 - beta1; the stored average gives it 1 - beta2, which is smaller.
There is one state array instead of Adam's two. AdamW's steps are mostly smaller than lr, so Lion wants a learning rate
3 to 10 times smaller and, for the same lr * weight_decay, a weight decay that many times larger.

Saved between steps: m, of the parameter's shape and dtype.
Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2.
"""

from __future__ import annotations

from typing import Any

from ..backends import array_module
from ..kernel import kernel
from ..typing import Array
from .adamw import check_betas
from .optimizer import Optimizer, Parameters, Slot


@kernel(in_place=True)
def lion_update(
    param: Array,
    grad: Array,
    m: Array,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_scale: float,
) -> None:
    """One step, in place on param and m (all of one shape)."""
    xp = array_module(param)
    grad = grad * grad_scale
    direction = xp.sign(beta1 * m + (1 - beta1) * grad)
    param *= 1 - lr * weight_decay
    param -= lr * direction
    m *= beta2
    m += (1 - beta2) * grad


class Lion(Optimizer):
    """Lion over `parameters` (tensors, (name, tensor) pairs or groups: see `tinygpt.optim.optimizer`).

    betas: the weights of m in the direction and in the next m, in [0, 1). weight_decay, l1, l2: act on matrices only.
    A group may set its own betas. Raises UsageError and DtypeError.
    """

    state_names = ("m",)
    group_settings = ("betas",)

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, l1, l2)
        self.betas: tuple[float, float] = self._check_setting("betas", betas)

    def _check_setting(self, name: str, value: Any) -> Any:
        return check_betas(self.where, value)

    def _update(self, slot: Slot, grad: Array, grad_scale: float) -> None:
        lr, betas = self.lr * slot.lr_scale, self._setting(slot, "betas")
        lion_update(slot.parameter.data, grad, slot.state["m"], lr, *betas, slot.weight_decay, grad_scale)
