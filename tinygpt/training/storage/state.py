"""The progress of a run, and the check of all state in a checkpoint before a run is resumed from it.

A file with a correct SHA-256 may still be damaged, from another version, or forged. So every entry is checked before it
is used, and one that this version would not have written raises an error that names it.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field
from typing import Any

from ... import backends
from ...checkpoint import Checkpoint, entry, made_of, model_config, require_kind, short
from ...errors import CheckpointError
from ...interop.packed_run import packed_facts
from ...random import Generator
from ..settings.config import TrainingConfig


@dataclass
class TrainState:
    """The progress of a run: what a checkpoint stores besides arrays and random state."""

    step: int = 0  # updates so far; also the index of the next batch
    evaluated_at: int = -1  # the step of the last evaluation
    validation_loss: float | None = None  # its result
    best_loss: float | None = None
    best_step: int = -1
    without_improvement: int = 0  # evaluations since the best
    losses: list[float] = field(default_factory=list)  # of the steps since the last metrics line
    metrics_lines: int = 0
    seconds: float = 0.0  # spent training, over all sessions

    def take(self, validation_loss: float) -> bool:
        """Record the validation loss at this step; return whether it is the best so far."""
        self.evaluated_at, self.validation_loss = self.step, validation_loss
        improved = self.best_loss is None or validation_loss < self.best_loss
        if improved:
            self.best_loss, self.best_step, self.without_improvement = validation_loss, self.step, 0
        else:
            self.without_improvement += 1
        return improved

    def mean_loss(self) -> float:
        """The mean over the steps since the last call."""
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        return mean


def check_state(checkpoint: Checkpoint, where: str) -> None:
    """Raise CheckpointError unless a run can be resumed from the checkpoint.

    where: the checkpoint, for error messages.
    """
    state = checkpoint.state
    try:
        if packed_facts(state, where) is None:  # otherwise the base decides which sizes are right
            model_config(state, sum(array.size for array in checkpoint.model.values()), where)
        training_config(state, where)
        for name, kind in (("text", dict), ("optimizer_steps", dict), ("generator", dict), ("progression", dict)):
            require_kind(name, entry(state, name), kind)
        require_kind("loss_scale", state.get("loss_scale", {}), dict)  # older checkpoints have none
        require_kind("ema_steps", state.get("ema_steps", 0), int)
        if state.get("backend", "numpy") not in backends.NAMES:
            raise ValueError(f"backend is {state['backend']!r}, not one of {', '.join(backends.NAMES)}")
        for name, step in state["optimizer_steps"].items():
            require_kind(f"optimizer_steps of {name}", step, int)
        Generator(entry(state["generator"], "seed"), entry(state["generator"], "stream"))
        _check_progression(state, typing.get_type_hints(TrainState))
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where} is damaged: in its state {error}") from error


def training_config(state: dict[str, Any], where: str) -> TrainingConfig:
    """The training settings in a checkpoint's state. Raises CheckpointError."""
    config: TrainingConfig = made_of(TrainingConfig.from_dict, state, "training_config", where)
    return config


def _check_progression(state: dict[str, Any], hints: dict[str, Any]) -> None:
    values = state["progression"]
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"progression has an entry {name!r} that this version does not know")
        kinds = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is not list else ()
        kinds = kinds or (hints[name],)
        if value is None and type(None) in kinds:
            continue
        if typing.get_origin(hints[name]) is list:
            require_kind(name, value, list)
            for number in value:
                _is_number(name, number)
        elif float in kinds:
            _is_number(name, value)
        elif int in kinds:
            require_kind(name, value, int)
    if values.get("step") != state["step"]:
        raise ValueError(f"the step is {state['step']}, but in progression it is {short(values.get('step'))}")


def _is_number(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} is {short(value)}, not a finite number")
