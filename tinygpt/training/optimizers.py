"""The optimizer of a run, its learning-rate schedule and the average of its weights, from the settings.

With an average (`ema`), evaluations and checkpoints have the averaged weights as the model's, so everything that loads
a run gets those. The weights that training continues from are in the checkpoint too, next to the optimizer's state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from ..optim import EMA, SGD, Adam, AdamW, Lion, Muon, Optimizer, layer_decay, schedules
from ..tensor import Tensor
from .settings.config import TrainingConfig

Named = Sequence[tuple[str, Tensor]]


def make_optimizer(config: TrainingConfig, parameters: Named) -> Optimizer:
    """The optimizer that `config.optimizer` names, over these parameters. Raises UsageError."""
    groups: Any = parameters if config.layer_decay == 1 else layer_decay(parameters, config.layer_decay)
    return MAKERS[config.optimizer](config, groups, {"l1": config.l1, "l2": config.l2})


def _sgd(config: TrainingConfig, groups: Any, penalties: dict[str, float]) -> Optimizer:
    momentum = 0.9 if config.momentum is None else config.momentum
    return SGD(groups, config.lr, momentum, config.weight_decay, bool(config.nesterov), **penalties)


def _muon(config: TrainingConfig, groups: Any, penalties: dict[str, Any]) -> Optimizer:
    given: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov, "adamw_lr": config.adamw_lr}
    given = {name: value for name, value in given.items() if value is not None}
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    return Muon(groups, config.lr, weight_decay=decay, betas=betas, **given, **penalties)


def _with_betas(kind: Any) -> Callable[..., Optimizer]:
    def make(config: TrainingConfig, groups: Any, penalties: dict[str, float]) -> Any:
        return kind(groups, config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay, **penalties)

    return make


MAKERS: dict[str, Callable[[TrainingConfig, Any, dict[str, float]], Optimizer]] = {
    "adamw": _with_betas(AdamW), "adam": _with_betas(Adam), "lion": _with_betas(Lion), "sgd": _sgd, "muon": _muon,
}  # fmt: skip


def make_schedule(config: TrainingConfig) -> schedules.Schedule:
    """The learning rate as a function of the step."""
    end = config.decay_steps or config.steps
    rates = config.lr, config.min_lr or 0.0
    return schedules.make(config.schedule, *rates, config.warmup_steps, end, config.decay_fraction)


def make_average(config: TrainingConfig, parameters: Named) -> EMA | None:
    """The average of the weights, or None."""
    return EMA(parameters, config.ema) if config.ema else None


def averaged(average: EMA | None) -> contextlib.AbstractContextManager[None]:
    """A `with` block in which the model has its averaged weights, if there is an average."""
    return average.applied() if average is not None else contextlib.nullcontext()
