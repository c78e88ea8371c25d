"""Optimizers, groups of parameters, gradient clipping, learning-rate schedules, averaged weights.

A training step with gradient clipping that needs no extra pass over the gradients:

    norm = grad_norm(model.parameters())
    optimizer.lr = schedule(step)
    optimizer.step(grad_scale=clip_coefficient(norm, 1.0))
    optimizer.zero_grad()
"""

from __future__ import annotations

from . import regularization, schedules
from .adam import Adam
from .adamw import AdamW
from .clip import ScaleOnDevice, clip_coefficient, clip_grad_norm, grad_norm
from .ema import EMA
from .groups import by_name, layer_decay
from .lion import Lion
from .muon import Muon
from .optimizer import Optimizer
from .sgd import SGD

clip_grad_norm_ = clip_grad_norm  # PyTorch's name

__all__ = [
    "EMA",
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "Muon",
    "Optimizer",
    "ScaleOnDevice",
    "by_name",
    "clip_coefficient",
    "clip_grad_norm",
    "clip_grad_norm_",
    "grad_norm",
    "layer_decay",
    "regularization",
    "schedules",
]
