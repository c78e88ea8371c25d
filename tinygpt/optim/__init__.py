"""Optimizers, gradient clipping and learning-rate schedules.

A training step with gradient clipping that needs no extra pass over the gradients:

    norm = grad_norm(model.parameters())
    optimizer.lr = schedule(step)
    optimizer.step(grad_scale=clip_coefficient(norm, 1.0))
    optimizer.zero_grad()
"""

from __future__ import annotations

from . import regularization, schedules
from .adamw import AdamW
from .clip import clip_coefficient, clip_grad_norm, grad_norm
from .optimizer import Optimizer
from .sgd import SGD

__all__ = [
    "SGD",
    "AdamW",
    "Optimizer",
    "clip_coefficient",
    "clip_grad_norm",
    "grad_norm",
    "regularization",
    "schedules",
]
