"""Saves the complete state of a run as a checkpoint, and restores it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ... import backends
from ...checkpoint import Checkpoint, CheckpointFolder, require_same
from ...errors import CheckpointError, UsageError
from ...files import user_path
from ...interop.packed_run import is_packed, load_weights, require_base, weights_of
from ...nn.lora import lora_of
from ..settings.config import CHANGEABLE, changed_step_size
from . import export
from .folder import METRICS, PICTURE
from .state import TrainState, check_state, training_config

if TYPE_CHECKING:
    from ..loop import Trainer

WEIGHTS = "weights"  # kind of the optimizer's arrays: what training continues from, if the model has the average
_NO_ADAPTER: dict[str, Any] = {"rank": None}  # a model without LoRA


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """The current state of a run."""
    model = {name: backends.move(array, "numpy") for name, array in weights_of(trainer.model).items()}
    kinds = trainer.optimizer.state_dict()
    steps = kinds.pop("step")
    optimizer = {
        f"{kind}.{name}": backends.move(array, "numpy")
        for kind, arrays in kinds.items()
        for name, array in arrays.items()
    }
    if trainer.average is not None:
        optimizer |= {f"{WEIGHTS}.{name}": model[name] for name in trainer.average.average}
        model |= {name: backends.move(array, "numpy") for name, array in trainer.average.average.items()}
    state = {
        "step": trainer.state.step,
        "progression": dataclasses.asdict(trainer.state),
        "generator": trainer.model.generator.state_dict(),
        "optimizer_steps": steps,
        "model_config": trainer.model.config.to_dict(),
        **({"lora": _adapter(trainer.model)} if lora_of(trainer.model) else {}),
        "base_model": _source(trainer.model),
        **({"packed_base": trainer.packed_base} if is_packed(trainer.model) else {}),
        "training_config": dataclasses.asdict(trainer.config),
        "text": trainer.objective.data,
        "loss_scale": trainer.loss_scale.state_dict(),
        "ema_steps": 0 if trainer.average is None else trainer.average.steps,
        "backend": trainer.parameters[0].backend,
    }
    return Checkpoint(model, optimizer, state)


def write_checkpoint(trainer: Trainer, checkpoint: Checkpoint, best: bool) -> None:
    """Write it into the run's folder. A new run's files are then moved into place, replacing an older run's."""
    with writing(trainer):
        trainer.report.metrics.sync()
        if best and trainer.tokenizer is not None:
            export.remove_model(trainer.folder)
        trainer.checkpoints.save(checkpoint, best)
        if trainer.run_folder.staged:
            trainer.report.metrics.close()
            trainer.folder = trainer.run_folder.publish()
            trainer.checkpoints = CheckpointFolder(trainer.folder)
            trainer.report.move_to(trainer.folder / METRICS, trainer.folder / PICTURE)


def _source(model: Any) -> str | None:
    """Where the model came from: for a packed base an absolute path, since it is needed again from any folder."""
    source: str | None = getattr(model, "source", None)
    if source is not None and is_packed(model) and user_path(source).is_dir():
        return str(user_path(source).resolve())
    return source


def _adapter(model: Any) -> dict[str, Any]:
    """The settings of the model's LoRA adapter, as JSON values."""
    lora = lora_of(model)
    return _NO_ADAPTER if lora is None else lora.to_dict()


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Restore a trainer from a checkpoint. Raises CheckpointError if it is from a different run, or damaged."""
    state = checkpoint.state
    where = f"the checkpoint of step {checkpoint.step} in {trainer.run_folder}"
    check_state(checkpoint, where)
    config = trainer.config.resumed(state["training_config"])
    require_same(where, state["model_config"], trainer.model.config.to_dict())
    require_same(f"{where}, with its LoRA adapter,", state.get("lora") or _NO_ADAPTER, _adapter(trainer.model))
    _require_same_base(trainer, state, where)
    stored = dataclasses.asdict(training_config(state, where))  # with defaults for settings that are newer than the run
    require_same(where, stored, dataclasses.asdict(config), CHANGEABLE)
    if state["text"] != trainer.objective.data:
        raise CheckpointError(f"{where} is of {trainer.objective.other_data}")
    optimizer: dict[str, dict[str, Any]] = {"step": state["optimizer_steps"]}
    for name, array in checkpoint.optimizer.items():
        kind, _, parameter = name.partition(".")
        optimizer.setdefault(kind, {})[parameter] = array
    weights = optimizer.pop(WEIGHTS, {}) if trainer.average is not None else {}
    try:
        load_weights(trainer.model, checkpoint.model | weights)
        if trainer.average is not None:
            average = {name: checkpoint.model[name] for name in weights}
            trainer.average.load_state_dict({"steps": state["ema_steps"], "average": average})
        trainer.optimizer.load_state_dict(optimizer)
        if getattr(trainer.model, "source", None) is None:
            trainer.model.source = state.get("base_model")
        trainer.model.generator.load_state_dict(state["generator"])
        trainer.loss_scale.load_state_dict(state.get("loss_scale", {}))  # older checkpoints have none
        trainer.state = TrainState(**state["progression"])
    except (UsageError, TypeError, KeyError) as error:
        raise CheckpointError(f"{where} does not fit this version's model: {error}") from error
    trainer.use(config)
    trainer.changed = changed_step_size(stored, config)
    trainer.saved_at = trainer.state.step


def _require_same_base(trainer: Trainer, state: dict[str, Any], where: str) -> None:
    there, here = ((facts or {}).get("format") for facts in (state.get("packed_base"), trainer.packed_base))
    require_same(f"{where}, with its packed base,", {"format": there}, {"format": here})
    if there is not None:
        require_base(trainer.model, state["packed_base"], where)


@contextlib.contextmanager
def writing(trainer: Trainer) -> Iterator[None]:
    """Explains OSErrors. Wrap only code that writes to a run's folder: other OSErrors are not the folder's fault."""
    try:
        yield
    except OSError as error:
        what = f"cannot write to the folder {trainer.run_folder}: {error.strerror or error}"
        if trainer.saved_at >= 0 and not trainer.run_folder.staged:
            saved, then = f"the checkpoint of step {trainer.saved_at} is intact", "continue with --resume"
        else:
            saved, then = "nothing was saved", "try again"
        raise UsageError(f"{what}; {saved}: make room there, or allow writing, and {then}") from error


@contextlib.contextmanager
def holding(trainer: Trainer) -> Iterator[None]:
    """Holds the folder's lock during a run. Raises UsageError if the run may not write to the folder."""
    with contextlib.ExitStack() as held:
        with writing(trainer):
            held.enter_context(trainer.run_folder.held(resumed=trainer.saved_at >= 0))
        yield
