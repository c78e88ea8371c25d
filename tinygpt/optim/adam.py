"""Adam, whose weight decay is an L2 penalty.

    g = gradient + weight_decay * p
    m, v, mhat, vhat as in adamw.py
    p = p - lr * mhat / (sqrt(vhat) + eps)

The decay is a part of the gradient, so it is divided by sqrt(vhat) with the rest: a weight with large gradients is
hardly decayed. AdamW avoids that. Without weight decay the two are the same.

Source: Kingma, Ba, "Adam", 2015, algorithm 1; the penalty as in torch.optim.Adam.
"""

from __future__ import annotations

from .adamw import AdamW
from .optimizer import Parameters


class Adam(AdamW):
    """Adam over `parameters` (tensors, (name, tensor) pairs or groups: see `tinygpt.optim.optimizer`).

    The arguments are AdamW's. weight_decay: added to the gradient, matrices only; by default 0, as in PyTorch.
    """

    coupled_decay = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, l1=l1, l2=l2)
