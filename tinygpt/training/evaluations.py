"""The evaluations of a run: when one is due, and whether its weights are the best so far."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING

from .divergence import diverged
from .interrupt import StopRequest
from .objective import Batch
from .optimizers import averaged

if TYPE_CHECKING:
    from .loop import Trainer


LONG = 2.0  # seconds


class _Stopped(Exception):
    """Raised to leave an evaluation when the user asks to stop."""


class Evaluations:
    """Evaluates the model of a trainer. say: shows a line."""

    say: Callable[[str], None] = staticmethod(print)

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.announced = False  # whether the user has been told how long an evaluation takes, if it takes long

    def due(self, over: bool) -> bool:
        """Whether to evaluate before the next step. over: the run ends early."""
        config, state = self.trainer.config, self.trainer.state
        due = state.step % config.eval_every == 0 or state.step >= config.steps or over
        return due and state.evaluated_at != state.step

    def evaluate(self, stop: StopRequest) -> bool:
        """Evaluate and record the validation loss; return whether it is the best so far. Raises DivergedError."""
        trainer, average = self.trainer, self.trainer.average
        trainer.steps.settle()
        random_state = trainer.model.generator.state_dict()
        try:
            with contextlib.nullcontext() if average is None else trainer.urgent.changing(), averaged(average):
                figures = trainer.objective.evaluate(trainer.model, self._batches(stop))
        except _Stopped:  # a resumed run evaluates at this step again
            return False
        except Exception:
            trainer.save_as_before(random_state)
            raise
        loss = figures["validation_loss"]
        if not math.isfinite(loss):
            raise diverged(trainer, f"the validation loss is {loss}")
        with trainer.urgent.changing():
            return self._take(loss, figures)

    def _batches(self, stop: StopRequest) -> Iterator[Batch]:
        begin = time.perf_counter()
        for index, batch in enumerate(self.trainer.validation):
            if index == self.trainer.share.size and not self.announced:
                self._announce(time.perf_counter() - begin)
            if index % self.trainer.share.size == 0:  # of `size` batches, each process evaluates one
                self.trainer.share.agree()
            if stop.requested:
                raise _Stopped
            yield batch

    def _announce(self, seconds: float) -> None:
        """Say how long the first evaluation takes, since nothing else is printed meanwhile. seconds: for one batch."""
        self.announced = True
        count = len(self.trainer.validation) if isinstance(self.trainer.validation, Sized) else 0
        seconds *= count / self.trainer.share.size
        if seconds > LONG:
            step = self.trainer.state.step
            self.say(f"step {step}: an evaluation of {count} batches takes about {seconds:.0f} s")

    def _take(self, loss: float, figures: dict[str, float]) -> bool:
        state, improved = self.trainer.state, self.trainer.state.take(loss)
        named = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
        words = f"step {state.step}: {named}{' (best so far)' if improved else ''}"
        self.trainer.record({"step": state.step, **figures}, words)
        return improved
