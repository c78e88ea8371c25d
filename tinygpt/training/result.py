"""How a run ended, and the error of a callback that failed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .loop import Trainer


class CallbackError(UsageError, RuntimeError):
    """A callback raised an exception, which is `__cause__`. The run's latest state was saved."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended. A notebook shows it as the loss curve.

    signal: the one that interrupted the run, or None. picture: a message about the loss curve; picture_file: its file,
    or None if none was drawn. begin: the step at which `Trainer.run` started; equal to `step` if there was nothing left
    to do. over: why it ended with steps left, other than patience or a signal.
    """

    step: int
    begin: int
    validation_loss: float | None
    best_loss: float | None
    best_step: int
    seconds: float
    stopped_early: bool
    patience: int
    signal: int | None
    picture: str
    picture_file: Path | None = None
    over: str = ""

    def _repr_png_(self) -> bytes | None:
        """The loss curve, for Jupyter: the one that is in the run's folder now, or None."""
        if self.picture_file is not None:
            with contextlib.suppress(OSError):  # the folder was moved or removed
                return self.picture_file.read_bytes()
        return None

    def summary(self) -> str:
        """A message to print at the end of a run."""
        facts = [self._end()]
        if self.best_loss is not None:
            facts.append(f"the best validation loss was {self.best_loss:.4f} at step {self.best_step}")
        return "; ".join([*facts, self.picture] if self.picture else facts) + "."

    def _end(self) -> str:
        seconds = f"at step {self.step} after {self.seconds:.0f} s"
        if self.over:
            return f"Training ended {self.over} {seconds}"
        if self.signal is not None:
            return f"Training was interrupted {seconds}, and saved: resume it to continue"
        if self.begin < self.step:
            early = f"stopped early, with no better result in the last {self.patience} evaluations,"
            return f"Training {early if self.stopped_early else 'finished'} {seconds}"
        if self.stopped_early:
            return (
                f"Nothing to train: the run stopped early {seconds}, and patience is still {self.patience}: "
                "set a larger patience, or 0, to continue"
            )
        return f"Nothing to train: the run already finished {seconds}; set more steps to continue"


def result_of(trainer: Trainer, begin: int, signal: int | None) -> TrainingResult:
    """The result of a run that began at step `begin`. Draws the loss curve, unless a signal ended the run."""
    state, early = trainer.state, signal is None and trainer.state.step < trainer.config.steps
    over = trainer.over if early else ""
    words, picture = trainer.report.draw() if signal is None else ("", None)
    return TrainingResult(
        step=state.step, begin=begin, validation_loss=state.validation_loss, best_loss=state.best_loss,
        best_step=state.best_step, seconds=state.seconds, stopped_early=early and not over, over=over,
        patience=trainer.config.patience, signal=signal, picture=words, picture_file=picture,
    )  # fmt: skip
