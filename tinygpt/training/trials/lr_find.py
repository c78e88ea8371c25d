"""The learning-rate range test: a few steps at rates that rise exponentially, and the loss at each of them.

    found = find_lr(trainer)                    # leaves the trainer as it was
    found.suggestion, found.lrs, found.losses
    found.draw("lr_find.png")

At rates that are too low the loss stays as it is, at good ones it falls, beyond them it rises. The suggestion is the
rate at which the smoothed loss falls most steeply over the logarithm of the rate; rates beyond the lowest loss, where
it has begun to rise, don't count. A test of single steps says little about the end of a run: it gives the order of
magnitude to start from.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3. The exponential rise, the
smoothing and the steepest fall are those of Gugger, "How Do You Find A Good Learning Rate", 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...console import bar
from ...errors import RangeError, UsageError
from ...files import atomic_write
from ..monitoring.picture import require_matplotlib
from ..settings.config import LEARNING_RATES
from .trial import on_trial, trial_step

if TYPE_CHECKING:
    from ..loop import Trainer

STEPS = 100
_SPAN = 1000.0  # the range extends by this factor below and above the optimizer's usual rate
PICTURE = "lr_find.png"
_SMOOTHING = 0.8  # decay of the mean loss; its bias towards the first losses is corrected as Adam's is
_DIVERGED = 4.0  # the test ends when the smoothed loss is this many times its minimum
_FEWEST = 10  # steps
_NOISE = 10  # first steps, whose smoothed loss is that of a few batches: their slope says nothing


@dataclass(frozen=True)
class RangeTest:
    """lrs, losses: of each step, in its order. smoothed: the losses' moving average. suggestion: None if the loss fell
    at no rate. ended: whether the loss rose so far that higher rates were left out."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    ended: bool

    def summary(self) -> str:
        """What the test found, in a few lines."""
        end = f"; at {self.lrs[-1]:.2g} it diverges" if self.ended else ""
        low = int(np.argmin(self.smoothed)) if self.smoothed else 0
        if self.suggestion is None:
            return (
                f"The loss did not fall at any learning rate from {self.lrs[0]:.2g} to {self.lrs[-1]:.2g}{end}: "
                "try larger batches, or other settings."
            )
        return (
            f"The loss falls most steeply at the learning rate {self.suggestion:.2g}, and is lowest at "
            f"{self.lrs[low]:.2g}{end}. To start from: --lr {self.suggestion:.2g}"
        )

    def draw(self, path: str | Path) -> None:
        """Draw the losses over the learning rates as a PNG file. Raises MissingExtraError, OSError."""
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(self.lrs[: len(self.losses)], self.losses, linewidth=1.0, alpha=0.4, label="loss of the step")
        axes.plot(self.lrs[: len(self.smoothed)], self.smoothed, linewidth=2.0, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="gray", linestyle="--", label=f"suggestion: {self.suggestion:.2g}")
        axes.set_xscale("log")
        axes.set_title("Learning-rate range test")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_write(Path(path)) as file:
            FigureCanvasAgg(figure).print_png(file)


def find_lr(
    trainer: Trainer, first: float | None = None, last: float | None = None, steps: int = STEPS, *, shown: bool = True
) -> RangeTest:
    """Take `steps` steps at rates from `first` to `last`, or until the loss diverges. Nothing of the run changes.

    By default the rates go from a thousandth to a thousandfold of the optimizer's usual one (`LEARNING_RATES`). With
    muon, what adamw trains keeps its ratio to the rate. shown: whether to show a bar. Raises RangeError; UsageError if
    the loss is not finite before any step.
    """
    usual = LEARNING_RATES[trainer.config.optimizer]
    first, last = usual / _SPAN if first is None else first, usual * _SPAN if last is None else last
    if not 0 < first < last < math.inf:
        raise RangeError(f"find_lr: expected 0 < first < last, got first = {first:g} and last = {last:g}")
    if steps < _FEWEST:
        raise RangeError(f"find_lr: a range test needs at least {_FEWEST} steps, not {steps}")
    lrs, losses, smoothed = [], [], []
    mean, ended = 0.0, False
    with on_trial(trainer):
        for step in bar(range(steps), "range test", shown):
            lr = first * (last / first) ** (step / (steps - 1))
            loss = trial_step(trainer, lr)
            lrs.append(lr)
            ended = not math.isfinite(loss)
            if ended:
                break
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            losses.append(loss)
            smoothed.append(mean / (1 - _SMOOTHING ** (step + 1)))
            ended = smoothed[-1] > _DIVERGED * min(smoothed)
            if ended:
                break
    if not losses:
        raise UsageError(
            "the loss of the first batch is not finite before any step, so no learning rate helps: --detect-anomaly "
            "names the operation"
        )
    return RangeTest(lrs, losses, smoothed, suggestion(lrs, smoothed), ended)


def suggestion(lrs: list[float], smoothed: list[float]) -> float | None:
    """The rate of the steepest fall before the lowest loss; None if the loss never falls."""
    end = int(np.argmin(smoothed)) + 1
    begin = min(_NOISE, end // 2)
    if end - begin < 2:
        return None
    slope = np.gradient(np.array(smoothed[begin:end]), np.log(lrs[begin:end]))
    steepest = int(np.argmin(slope))
    return float(lrs[begin + steepest]) if slope[steepest] < 0 else None
