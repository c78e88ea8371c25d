"""The state in a checkpoint, looked through before a run goes on from it.

A file may be damaged, made by another version or forged, with a sound SHA-256: what is not as this version writes it is
refused with a sentence that names the entry, before anything is built of it.
"""

from __future__ import annotations

import math
import typing
from typing import Any

from .. import backends
from ..checkpoint import Checkpoint
from ..errors import CheckpointError, UsageError
from ..gpt import GPTConfig
from ..memory import number_of, parameter_count
from ..random import Generator
from .config import TrainingConfig

_LEAST = 1 << 20
_MOST = 1 << 63


def check_state(checkpoint: Checkpoint, where: str, progression: type) -> None:
    """Raise CheckpointError unless a run can go on from the checkpoint.

    where: the checkpoint, for the sentence. progression: the dataclass that state["progression"] is made into.
    """
    state = checkpoint.state
    try:
        model_config(state, sum(array.size for array in checkpoint.model.values()), where)
        training_config(state, where)
        for name, kind in (("text", dict), ("optimizer_steps", dict), ("generator", dict), ("progression", dict)):
            _is(name, _entry(state, name), kind)
        _is("loss_scale", state.get("loss_scale", {}), dict)  # older checkpoints have none
        if state.get("backend", "numpy") not in backends.NAMES:
            raise ValueError(f"backend is {state['backend']!r}, not one of {', '.join(backends.NAMES)}")
        for name, step in state["optimizer_steps"].items():
            _is(f"optimizer_steps of {name}", step, int)
        Generator(_entry(state["generator"], "seed"), _entry(state["generator"], "stream"))
        _check_progression(state, typing.get_type_hints(progression))
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where} is damaged: in its state {error}") from error


def model_config(state: dict[str, Any], found: int, where: str) -> GPTConfig:
    """The model's configuration in a checkpoint's state. Raises CheckpointError, also where it would be a much larger
    model than the checkpoint's, which has `found` numbers."""
    config: GPTConfig = _made(GPTConfig.from_dict, state, "model_config", where)
    count = parameter_count(config)
    if count > 2 * found + _LEAST:  # a model of one's own may share some; this one would take memory for nothing
        raise CheckpointError(
            f"{where} is damaged: it holds {found} numbers for a model of {number_of(count)} parameters"
        )
    return config


def training_config(state: dict[str, Any], where: str) -> TrainingConfig:
    """The run's settings in a checkpoint's state. Raises CheckpointError."""
    config: TrainingConfig = _made(TrainingConfig.from_dict, state, "training_config", where)
    return config


def _made(make: Any, state: dict[str, Any], name: str, where: str) -> Any:
    try:
        values = _entry(state, name)
        _is(name, values, dict)
        return make(values)
    except (UsageError, ValueError, TypeError) as error:
        raise CheckpointError(f"{where} has no sound {name}: {error}") from error


def _entry(values: dict[str, Any], name: str) -> Any:
    if name not in values:
        raise ValueError(f"{name} is missing")
    return values[name]


def _is(name: str, value: Any, kind: Any) -> None:
    if type(value) is not kind:
        raise ValueError(f"{name} is {_short(value)}, which is no {'whole number' if kind is int else kind.__name__}")
    if kind is int and not -1 <= value < _MOST:
        raise ValueError(f"{name} is {_short(value)}, which is out of range")


def _check_progression(state: dict[str, Any], hints: dict[str, Any]) -> None:
    values = state["progression"]
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"there is an entry {name!r} in progression that this version does not know")
        kinds = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is not list else ()
        kinds = kinds or (hints[name],)
        if value is None and type(None) in kinds:
            continue
        if typing.get_origin(hints[name]) is list:
            _is(name, value, list)
            for number in value:
                _is_number(name, number)
        elif float in kinds:
            _is_number(name, value)
        elif int in kinds:
            _is(name, value, int)
    if values.get("step") != state["step"]:
        raise ValueError(f"the step is {state['step']} and in progression {_short(values.get('step'))}")


def _is_number(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} is {_short(value)}, which is no number")


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:37]}..."
