"""The settings of a training run, with their meanings, defaults and limits.

`TrainingConfig` is the only place where settings are declared: the command line derives its options from the fields
(`options.py`), a checkpoint stores them, and the loop reads them. `presets.py` holds well-known combinations of model
and training settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...backends.cupy_graph import MODES
from ...backends.precision import DTYPES
from ...checks import number, whole_number
from ...errors import RangeError, UsageError
from ...optim.schedules import KINDS as SCHEDULES

# What a resumed run may change: its length, its monitoring, its rounding, and the size of its steps, which a run that
# diverged needs. The other settings define the run, and must stay the same.
STEP_SIZE = (
    "lr", "adamw_lr", "min_lr", "schedule", "warmup_steps", "decay_steps", "decay_fraction", "grad_clip",
)  # fmt: skip
CHANGEABLE = frozenset(
    {
        "steps",
        "eval_every",
        "log_every",
        "checkpoint_every",
        "patience",
        "dtype",
        "cuda_graphs",
        "detect_anomaly",
        "shard_optimizer",
        "recompute",
    }
) | frozenset(STEP_SIZE)

LEARNING_RATES = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.1, "lion": 2e-4, "muon": 0.02}  # peak rates, by default
ONLY_OF = {"momentum": ("sgd", "muon"), "nesterov": ("sgd", "muon"), "adamw_lr": ("muon",)}  # setting -> optimizers


def declare(default: Any, help: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of a run; the defaults are nanoGPT's for a CPU. Raises RangeError."""

    steps: int = declare(2000, "total number of optimizer steps", at_least=1)
    batch_size: int = declare(12, "rows in a batch", at_least=1)
    order: str = declare(
        "random",
        "random: windows at random positions of the text; epochs: each window once per epoch, shuffled",
        choices=("random", "epochs"),
    )
    pack: bool = declare(False, "pack several short documents into one row, uncut where they fit")
    gradient_accumulation: int = declare(1, "batches per step; the loss is over all their targets", at_least=1)
    optimizer: str = declare(
        "adamw", "muon: for the matrices of the blocks, with adamw for the rest", choices=tuple(LEARNING_RATES)
    )
    lr: float = declare(
        None,
        "peak learning rate; by default " + ", ".join(f"{lr:g} for {name}" for name, lr in LEARNING_RATES.items()),
        above=0,
    )
    adamw_lr: float | None = declare(
        None, "muon: peak learning rate of the parameters that adamw trains; by default 0.001", above=0
    )
    min_lr: float | None = declare(None, "learning rate at the end of the decay; by default lr / 10", at_least=0)
    schedule: str = declare("cosine", "how the learning rate decays after the warm-up", choices=tuple(SCHEDULES))
    warmup_steps: int = declare(100, "steps over which the learning rate rises from zero", at_least=0)
    decay_steps: int | None = declare(None, "step at which min_lr is reached; by default the last", at_least=1)
    decay_fraction: float = declare(
        0.2, "wsd: fraction of the steps after the warm-up over which the learning rate decays", above=0, at_most=1
    )
    weight_decay: float = declare(
        0.1, "weight decay of the matrices: decoupled, except with sgd and adam, where it is the same as l2", at_least=0
    )
    l1: float = declare(0.0, "penalty l1 * sum |p| over the weight matrices", at_least=0)
    l2: float = declare(0.0, "penalty l2 / 2 * sum p^2 over the weight matrices", at_least=0)
    beta1: float = declare(0.9, "adam, adamw, lion: decay of the mean gradient", at_least=0, below=1)
    beta2: float = declare(
        0.99,
        "adam, adamw: decay of the mean squared gradient; lion: of the stored mean gradient",
        at_least=0,
        below=1,
    )
    momentum: float | None = declare(
        None, "decay of the mean gradient; by default 0.9 for sgd, 0.95 for muon", at_least=0, below=1
    )
    nesterov: bool | None = declare(None, "sgd, muon: Nesterov momentum; by default on for muon")
    layer_decay: float = declare(
        1.0, "learning-rate factor from each block to the one below it, for fine-tuning", above=0, at_most=1
    )
    ema: float = declare(
        0.0,
        "evaluate and save an exponential moving average of the weights with this decay; 0: none",
        at_least=0,
        below=1,
    )
    shard_optimizer: bool = declare(
        False, "several processes: each keeps its part of the optimizer's state, not all of it"
    )
    grad_clip: float = declare(1.0, "maximum norm of the whole gradient; 0: no limit", at_least=0)
    validation_fraction: float = declare(0.1, "fraction of the text, at its end, for validation", above=0, below=1)
    eval_every: int = declare(250, "steps between evaluations", at_least=1)
    eval_batches: int = declare(20, "validation batches per evaluation, always the same; 0: whole text", at_least=0)
    patience: int = declare(0, "stop after this many evaluations without a new best; 0: never", at_least=0)
    log_every: int = declare(10, "steps between lines of the metrics file", at_least=1)
    checkpoint_every: int = declare(250, "steps between checkpoints", at_least=1)
    dtype: str = declare(
        "float32",
        "dtype of activations and matrix products; float16 needs a GPU; weights and sums stay float32",
        choices=DTYPES,
    )
    cuda_graphs: str = declare(
        "auto",
        "on a GPU: record the kernel launches of a step once, then replay them as one; auto: if possible",
        choices=MODES,
    )
    recompute: bool = declare(
        False, "run the layers again in the backward pass instead of keeping what it needs: less memory, more time"
    )
    freeze: str | None = declare(None, "parameters to freeze, such as wte,wpe,h.0-5 or h.*.mlp")
    seed: int = declare(0, "seed of the weights, the batches and the dropout masks", at_least=0)
    detect_anomaly: bool = declare(False, "check every array for NaN and infinity and name the operation: slow")

    followed: ClassVar[frozenset[str]] = frozenset()  # the settings that were not given but derived from others

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            check_setting("training", setting, getattr(self, setting.name))
        for name, optimizers in ONLY_OF.items():
            if getattr(self, name) is not None and self.optimizer not in optimizers:
                raise RangeError(
                    f"training: {name} is a setting of {' and '.join(optimizers)}, and the optimizer is "
                    f"{self.optimizer}: leave out {name}, or choose another optimizer"
                )
        if self.lr is None:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        followed = frozenset(name for name in ("min_lr", "decay_steps") if getattr(self, name) is None)
        object.__setattr__(self, "followed", followed)
        if self.min_lr is None:
            object.__setattr__(self, "min_lr", self.lr / 10)
        elif self.min_lr > self.lr:
            raise RangeError(f"training: min_lr must be at most lr = {self.lr:g}, not {self.min_lr:g}")
        if self.decay_steps is None:  # fixed now, so that a resumed run with more steps keeps its schedule
            object.__setattr__(self, "decay_steps", max(self.steps, self.warmup_steps + 1))
        elif self.decay_steps <= self.warmup_steps:
            raise RangeError(
                f"training: decay_steps must be above warmup_steps = {self.warmup_steps}, not {self.decay_steps}: "
                "the decay begins where the warm-up ends"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """The config with these values, as returned by `dataclasses.asdict`."""
        unknown = sorted(set(values) - {setting.name for setting in dataclasses.fields(cls)})
        if unknown:
            raise UsageError(f"TrainingConfig has no setting {', '.join(unknown)}: was it made by another version?")
        return cls(**values)

    def resumed(self, stored: Mapping[str, Any]) -> TrainingConfig:
        """These settings for a run resumed from `stored` ones: derived values that were not given are the stored ones.

        So the decay of the learning rate ends at the same step as before, however many steps there are now, unless
        `decay_steps` is given.
        """
        kept = {"decay_steps"} | ({"min_lr"} if self.lr == stored.get("lr") else set())
        names = sorted(kept & self.followed & set(stored))
        return dataclasses.replace(self, **{name: stored[name] for name in names})


def new_settings(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a new run: the preset's, overridden by those given.

    If the optimizer is not the preset's, the preset's learning rates do not apply.
    """
    other = given.get("optimizer", preset.get("optimizer", "adamw")) != preset.get("optimizer", "adamw")
    left_out = {"lr", "min_lr", *ONLY_OF} if other else set()
    return {name: value for name, value in preset.items() if name not in left_out} | dict(given)


def resumed_settings(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resumed run: those stored in its checkpoint, overridden by those given.

    A min_lr that was derived from lr is derived from the new lr.
    """
    follows = "lr" in given and stored.get("min_lr") == stored.get("lr", 0.0) / 10
    return {name: value for name, value in stored.items() if not (follows and name == "min_lr")} | dict(given)


def changed_step_size(stored: Mapping[str, Any], config: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """The settings of `STEP_SIZE` that have changed: name -> (before, now)."""
    found = {name: (stored[name], getattr(config, name)) for name in STEP_SIZE if name in stored}
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def schedule_notes(config: TrainingConfig, step: int) -> list[str]:
    """Warnings about the learning rates of the steps that are left. Raises UsageError if all of them are 0."""
    if step >= config.steps:
        return []
    notes = []
    if config.warmup_steps >= config.steps:
        highest = config.lr * config.steps / (config.warmup_steps + 1)
        notes.append(
            f"the warm-up of {config.warmup_steps} steps does not end within the {config.steps} steps of this run: the "
            f"learning rate only rises to {highest:.3g}, not to {config.lr:g}; set a smaller warmup_steps"
        )
    end = config.decay_steps or config.steps
    if config.schedule != "constant" and end < config.steps:
        begin = max(step, end)
        where = f"the learning rate ends its decay at step {end}"
        advice = f"set decay_steps to {config.steps} to stretch the decay, or a higher min_lr"
        if config.min_lr == 0 and begin == step:
            raise UsageError(f"steps {begin} to {config.steps} would change nothing: {where}, with min_lr 0: {advice}")
        notes.append(f"{where}: steps {begin} to {config.steps} train at min_lr {config.min_lr:g}; {advice}")
    return notes


def check_setting(where: str, setting: dataclasses.Field[Any], value: Any) -> None:
    """Raise UsageError for a value that the setting's type, choices and limits don't allow. where: for the message."""
    limits, name = dict(setting.metadata), setting.name
    limits.pop("help")
    limits.pop("without_value", None)
    if value is None and setting.default is None:
        return
    if "choices" in limits:
        if value not in limits["choices"]:
            raise RangeError(f"{where}: {name} must be one of {', '.join(limits['choices'])}, not {value!r}")
    elif setting.type.startswith("str"):
        if not isinstance(value, str) or not value:
            raise RangeError(f"{where}: {name} must be a text, not {value!r}")
    elif setting.type.startswith("bool"):
        if not isinstance(value, bool):
            raise RangeError(f"{where}: {name} must be True or False, not {value!r}")
    elif setting.type.startswith("float"):
        number(where, name, value, **limits)
    else:
        whole_number(where, name, value, **limits)
