"""Norm, clipping and AdamW on a GPU, launched without waiting for anything: what follows the passes of a step.

`LateSteps` launches it, by itself or as a part of the CUDA graph that `GraphedStep` makes of the passes. A replay
repeats launches with the arguments that were recorded, so what changes from step to step must be in the GPU's memory:
the norm becomes a factor there (`optim.ScaleOnDevice`), and the learning rate, with what depends on the number of
steps, is copied there before each replay (`numbers`, from AdamW's `rates`). A replay must also do what
`optimizer.step` does on the host, which is to count the step.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import backends
from ...backends.cupy_graph import CaptureError
from ...backends.recording import is_recording
from ...changes import note_change
from ...optim import ScaleOnDevice

if TYPE_CHECKING:
    from ..loop import Trainer


class Update:
    """The update of a trainer whose optimizer `takes_scale_on_device`. numbers: what it takes from the host this time.

    recordable: whether it can be a part of a graph, judging by the previous step: all parameters must have gradients
    and share their settings.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.optimizer = trainer, trainer.optimizer
        self.scale = ScaleOnDevice(trainer.parameters)
        self.recordable = False  # whether all parameters have gradients, in the step before
        self.alike = len({(slot.parameter.dtype, *self._settings(slot)) for slot in self.optimizer.slots}) == 1
        self.numbers: np.ndarray = np.empty(0)

    def prepare(self) -> None:
        """Before each step, when the learning rate is set."""
        self.numbers = self.optimizer.rates()

    def __call__(self) -> None:
        self.recordable = self.alike and all(slot.parameter.grad is not None for slot in self.optimizer.slots)
        if not self.recordable and is_recording():
            raise CaptureError("a parameter has no gradient in this batch")
        self.scale.compute(self.trainer.accumulation.parts, self.trainer.config.grad_clip)
        self.scale.rates = backends.move(self.numbers, "cupy") if self.recordable else None
        self.optimizer.step(grad_scale=self.scale)

    def again(self) -> None:
        """What `__call__` does on the host: after a replay."""
        for slot in self.optimizer.slots:
            slot.step += 1
        note_change([slot.parameter.data for slot in self.optimizer.slots])
        for slot in self.optimizer.slots:
            if slot.rounded is not None:
                slot.rounded.is_current()

    @property
    def kind(self) -> Hashable:
        """What a recorded update depends on."""
        settings = self._settings(self.optimizer.slots[0])
        return settings, self.trainer.config.grad_clip, sum(slot.rounded is not None for slot in self.optimizer.slots)

    def _settings(self, slot: Any) -> tuple[Any, ...]:
        return tuple(slot.settings.get(name, getattr(self.optimizer, name)) for name in ("betas", "eps"))

    def arrays(self) -> list[Any]:
        """Everything that it changes on the GPU."""
        slots = self.optimizer.slots
        copies = [slot.rounded.array for slot in slots if slot.rounded is not None]
        states = [array for slot in slots for array in (slot.parameter.data, *slot.state.values())]
        return [*states, *copies, self.scale.on_device]

    def state(self) -> list[int]:
        """Everything that it changes on the host."""
        return [slot.step for slot in self.optimizer.slots]

    def restore(self, state: list[int]) -> None:
        for slot, step in zip(self.optimizer.slots, state, strict=True):
            slot.step = step
