"""Learning rates as functions of the step.

    schedule = Cosine(lr=1e-3, min_lr=1e-4, warmup_steps=100, total_steps=2000)
    optimizer.lr = schedule(step)          # the first step is step 0

A schedule has no state: the learning rate depends only on the step number, which is all that a resumed run needs. The
convention is nanoGPT's: the warm-up rises linearly, and its first rate is not 0,

    lr * (step + 1) / (warmup_steps + 1)                       step < warmup_steps

Then `progress` goes from 0 to 1 as the step goes from warmup_steps to total_steps, and stays at 1. `Constant` and
`InverseSquareRoot` work without total_steps: the others would not know how fast to fall.

    Constant             lr
    Linear               min_lr + (lr - min_lr) * (1 - progress)
    Cosine               min_lr + (lr - min_lr) * (1 + cos(pi * progress)) / 2
    WarmupStableDecay    lr until progress = 1 - decay_fraction, then a straight line to min_lr
    InverseSquareRoot    lr * sqrt((warmup_steps + 1) / (step + 1)), at least min_lr

A run with `WarmupStableDecay` can be resumed before its decay and trained for longer than was planned, which a cosine
does not allow.

Sources: Loshchilov, Hutter, "SGDR", 2017, equation 5, for the cosine, here without restarts; Hu et al., "MiniCPM",
2024, section 4, for warm-up, stable, decay; Vaswani et al., "Attention Is All You Need", 2017, equation 3, for the
inverse square root, here with lr, its highest value, as a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..checks import number, whole_number
from ..errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """Base class: a warm-up, then a decay whose shape the subclass defines. Raises UsageError, DtypeError."""

    lr: float
    min_lr: float = 0.0
    warmup_steps: int = 0
    total_steps: int | None = None  # the step at which min_lr is reached

    needs_total_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        where = type(self).__name__
        number(where, "lr", self.lr, at_least=0)
        number(where, "min_lr", self.min_lr, at_least=0)
        whole_number(where, "warmup_steps", self.warmup_steps, at_least=0)
        if self.total_steps is not None:
            whole_number(where, "total_steps", self.total_steps, at_least=0)
        elif self.needs_total_steps:
            raise UsageError(
                f"{where}: total_steps, the step at which min_lr is reached, is missing: give the number of steps of "
                "the run, or use Constant"
            )
        if self.min_lr > self.lr:
            raise UsageError(f"{where}: min_lr must be at most lr = {self.lr:g}, not {self.min_lr:g}")

    def __call__(self, step: int) -> float:
        """The learning rate for `step`, counted from 0."""
        step = whole_number(type(self).__name__, "step", step, at_least=0)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        if self.total_steps is None or step >= self.total_steps:
            progress = 1.0
        else:
            progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * self.share(progress)

    def share(self, progress: float) -> float:
        """(rate - min_lr) / (lr - min_lr): 1 at progress 0."""
        raise NotImplementedError(f"{type(self).__name__} defines no share")


class Constant(Schedule):
    """The warm-up, then `lr` to the end."""

    needs_total_steps = False

    def share(self, progress: float) -> float:
        return 1.0


class Linear(Schedule):
    """The warm-up, then a straight line to `min_lr` at `total_steps`."""

    def share(self, progress: float) -> float:
        return 1.0 - progress


class Cosine(Schedule):
    """The warm-up, then half a cosine wave to `min_lr` at `total_steps`."""

    def share(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class InverseSquareRoot(Schedule):
    """The warm-up, then a decay with the square root of the step, which never ends; total_steps has no effect."""

    needs_total_steps = False

    def __call__(self, step: int) -> float:
        """The learning rate for `step`, counted from 0."""
        if step < self.warmup_steps:
            return super().__call__(step)
        step = whole_number(type(self).__name__, "step", step, at_least=0)
        return max(self.min_lr, self.lr * math.sqrt((self.warmup_steps + 1) / (step + 1)))


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """The warm-up, `lr` for most of the run, then a straight line to `min_lr` at `total_steps`.

    decay_fraction: the fraction of the steps after the warm-up that the decay takes.
    """

    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        number(type(self).__name__, "decay_fraction", self.decay_fraction, above=0, at_most=1)

    def share(self, progress: float) -> float:
        return min(1.0, (1.0 - progress) / self.decay_fraction)


KINDS: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "inverse_sqrt": InverseSquareRoot,
    "wsd": WarmupStableDecay,
}


def make(
    kind: str,
    lr: float,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
    total_steps: int | None = None,
    decay_fraction: float = 0.2,
) -> Schedule:
    """Make a schedule by name: a key of `KINDS`. decay_fraction: for "wsd"."""
    if kind not in KINDS:
        raise UsageError(f"there is no schedule {kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "wsd":
        return WarmupStableDecay(lr, min_lr, warmup_steps, total_steps, decay_fraction)
    return KINDS[kind](lr, min_lr, warmup_steps, total_steps)
