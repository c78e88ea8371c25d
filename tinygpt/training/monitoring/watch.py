"""Hooks of a running trainer: the seam for whatever monitors a run without being part of it.

    trainer.watch = Follower(...)              # following.py

The trainer calls these methods. They may add to the records of the metrics file and end the run; they change nothing
that it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..loop import Trainer
    from .progress import Progress


class Watch:
    """Hooks that do nothing.

    takes_late: whether these hooks do without the loss and the gradients of each step, which on a GPU may then be read
    a step late (`step/late_steps.py`): `before_update` is not called, and `after_step` finds the state's steps and
    weights, but not the last loss. By default, a subclass sees each step in time.
    """

    takes_late = False
    layers_every: int | None = None  # interval of the steps at which all processes of a run have a LayerWatch

    def begin(self, trainer: Trainer, progress: Progress) -> None:
        """Before the first step of this session."""

    @property
    def over(self) -> str:
        """Why the run should end now, printed after "Training ended"; empty while it may continue. Read each step."""
        return ""

    def before_step(self) -> None:
        """Before each step."""

    def before_update(self, trainer: Trainer) -> None:
        """Before the weights are updated: the gradients are there, to be multiplied by `trainer.accumulation.scale`.
        Not called in a step that is skipped."""

    def after_step(self, trainer: Trainer) -> list[tuple[dict[str, Any], str]]:
        """After each step. Returns records for the metrics file, each with a line for the screen."""
        return []

    def figures(self, trainer: Trainer) -> dict[str, Any]:
        """What to add to the record of the training loss."""
        return {}

    def end(self, trainer: Trainer, progress: Progress) -> None:
        """After the last step of this session; not after an error."""

    def close(self) -> None:
        """When the session is over, after an error as well."""
