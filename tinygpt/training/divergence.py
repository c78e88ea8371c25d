"""The error for a run whose numbers are no longer finite, and how their origin is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import backends
from ..graph import NonFiniteError, detect_anomaly

if TYPE_CHECKING:
    from .loop import Trainer


class DivergedError(ArithmeticError):
    """The loss, a gradient or a weight is not finite. The message names the step and the cause."""


def diverged(trainer: Trainer, cause: str) -> DivergedError:
    """The error for the current step: its cause, what was saved, what may help."""
    if trainer.saved_at >= 0:
        kept = f"the checkpoint of step {trainer.saved_at} is in {trainer.run_folder}: resume it with"
    else:
        kept = "nothing was saved yet: start again with"
    return DivergedError(
        f"step {trainer.state.step} can't be computed: {cause}; {kept} a lower lr, a longer warm-up or a lower "
        "grad_clip"
    )


def first_cause(trainer: Trainer, random_state: Any) -> str:
    """Repeat the step with the same batch and random numbers, checking every array."""
    for name, parameter in trainer.model.named_parameters():
        if not bool(backends.array_module(parameter.data).isfinite(parameter.data).all()):
            return f"the weights {name} are not finite after the update before it"
    trainer.optimizer.zero_grad()
    trainer.model.generator.load_state_dict(random_state)
    none = "no single operation produced it: the gradients are finite, but the sum of their squares is not"
    try:
        with detect_anomaly(), trainer.share.apart():
            trainer.accumulation.compute()
        found = none
    except NonFiniteError as error:
        found = str(error)
    return trainer.share.first_of(found, none)
