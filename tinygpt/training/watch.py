"""What looks on while a trainer runs: the seam for whatever follows a run without being a part of it.

    trainer.watch = Follower(...)              # following.py

The trainer calls these methods. They may add to the records of the metrics file and say when the run should end; they
change nothing that the run computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Trainer
    from .progress import Progress


class Watch:
    """Follows nothing."""

    def begin(self, trainer: Trainer, progress: Progress) -> None:
        """Before the first step of this session."""

    @property
    def over(self) -> str:
        """Why the run should end now, said after "Training ended"; nothing while it may go on. Asked each step."""
        return ""

    def before_step(self) -> None:
        """Before each step."""

    def after_step(self, trainer: Trainer) -> list[tuple[dict[str, Any], str]]:
        """After each step. Returns records for the metrics file, each with words for the screen."""
        return []

    def figures(self, trainer: Trainer) -> dict[str, Any]:
        """What to add to the record of the training loss."""
        return {}

    def end(self, trainer: Trainer, progress: Progress) -> None:
        """After the last step of this session; not after an error."""

    def close(self) -> None:
        """When the session is over, after an error as well."""
