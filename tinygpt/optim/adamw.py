"""AdamW: Adam with decoupled weight decay.

For each parameter p with gradient g, Adam keeps two running averages: m, of the gradient, and v, of its square:

    m = beta1 m + (1 - beta1) g                v = beta2 v + (1 - beta2) g**2

Both start at zero, so early on they are too small: after t steps their weights on past gradients add up to only
1 - beta1**t and 1 - beta2**t. Dividing by these sums makes the weights add up to 1:

    mhat = m / (1 - beta1**t)                  vhat = v / (1 - beta2**t)

The step divides mhat by sqrt(vhat), so every number moves by about `lr`, whether its gradients are large or small.

    p = p - lr * weight_decay * p              (decoupled: not part of g, so not divided by sqrt(vhat))
    p = p - lr * mhat / (sqrt(vhat) + eps)

Saved between steps: m and v, of the parameter's shape and dtype, and t.
Source: Kingma, Ba, "Adam", 2015, algorithm 1; Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019,
algorithm 2, with the schedule multiplier folded into lr and the decay scaled by lr, as PyTorch does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends import array_module
from ..checks import number
from ..errors import DtypeError
from ..kernel import kernel
from ..typing import Array
from .optimizer import Optimizer, Parameters, Slot


@kernel(in_place=True)
def adamw_update(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: Any,
    rounded: Array | None = None,
) -> None:
    """One step, in place on param, m and v (all of one shape). `step` counts from 1.

    grad_scale: a number, or a `ScaleOnDevice` (clip.py); if that is NaN, nothing is changed.
    rounded: takes the new param in 16 bits.
    """
    xp = array_module(param)
    grad_scale = float(grad_scale)
    if math.isnan(grad_scale):
        return
    grad = grad * grad_scale
    m *= beta1
    m += (1 - beta1) * grad
    v *= beta2
    v += (1 - beta2) * grad * grad
    denominator = xp.sqrt(v / (1 - beta2**step)) + eps
    param *= 1 - lr * weight_decay
    param -= (lr / (1 - beta1**step)) * m / denominator
    if rounded is not None:
        rounded[...] = param


class AdamW(Optimizer):
    """AdamW over `parameters` (tensors, (name, tensor) pairs or groups: see `tinygpt.optim.optimizer`).

    lr: the learning rate; set `optimizer.lr` to change it between steps. betas: the two decay rates, in [0, 1). eps:
    keeps the division finite. weight_decay, l1, l2: act on matrices only. A group may set its own betas and eps.
    Raises UsageError and DtypeError.
    """

    state_names = ("m", "v")
    group_settings = ("betas", "eps")
    keeps_rounded = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, l1, l2)
        self.betas: tuple[float, float] = self._check_setting("betas", betas)
        self.eps: float = self._check_setting("eps", eps)

    def _check_setting(self, name: str, value: Any) -> Any:
        return check_betas(self.where, value) if name == "betas" else number(self.where, name, value, above=0)

    @property
    def takes_scale_on_device(self) -> bool:
        on_gpu = all(slot.parameter.backend == "cupy" for slot in self.slots)
        return on_gpu and not self.coupled_decay and not any(slot.l1 or slot.l2 for slot in self.slots)

    def rates(self) -> np.ndarray:
        """What the next step takes from the host, (slots, 3) float64: see `ScaleOnDevice.rates`.

        For each slot: the factor by which the decay scales the parameter, the step size, and the correction of v, as
        the CUDA body (adamw.cu) computes them from the arguments of `adamw_update`.
        """
        rows = []
        for slot in self.slots:
            lr, (beta1, beta2), step = self.lr * slot.lr_scale, self._setting(slot, "betas"), slot.step + 1
            decay = 0.0 if self.coupled_decay else slot.weight_decay
            rows.append((1 - lr * decay, lr / (1 - beta1**step), 1 / (1 - beta2**step)))
        return np.array(rows)

    def _update_all(self, ready: list[tuple[Slot, Array, Any]]) -> None:
        adamw_update.each(
            [
                (
                    slot.parameter.data, grad, slot.state["m"], slot.state["v"], self.lr * slot.lr_scale,
                    *self._setting(slot, "betas"), self._setting(slot, "eps"),
                    0.0 if self.coupled_decay else slot.weight_decay, slot.step, grad_scale,
                    *(() if slot.rounded is None else (slot.rounded.array,)),
                )
                for slot, grad, grad_scale in ready
            ]
        )  # fmt: skip
        for slot, _, _ in ready:
            if slot.rounded is not None:
                slot.rounded.is_current()


def check_betas(where: str, betas: Any) -> tuple[float, float]:
    """A pair of decay rates in [0, 1). Raises UsageError, DtypeError."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise DtypeError(f"{where}: betas must be a pair of numbers, not {betas!r}")
    first, second = (number(where, f"beta{i}", beta, at_least=0, below=1) for i, beta in enumerate(betas, start=1))
    return first, second
