"""Norms of each layer's gradients, weights and updates, recorded during training.

    trainer.watch = LayerWatch(every=100)                # tinygpt train --watch-layers 100
    {"step": 100, "layers": {"h.0.attn": {"gradient": 0.21, "weight": 14.2, "update": 0.013, "ratio": 0.00092}, ...}}

One number for the whole model, grad_norm, hides a layer that does not learn, or one that diverges. The number to
look at first is `ratio`, the size of one update relative to the weights: about 1e-3 is usual. Far less means that the
layer hardly moves; far more, after the warm-up, that the learning rate is too high for it.

| name | the Euclidean norm, over the layer's trained parameters, of |
|---|---|
| gradient | the step's gradient, before clipping: the squares of all layers add up to that of grad_norm |
| weight | the weights after the step, those that training continues from (not their average, with --ema) |
| update | the weights after the step minus those before it, as they were rounded: whatever the optimizer did |
| ratio | update / weight |

A layer is a module directly inside a block (h.0.ln_1, h.0.attn, h.0.mlp), or outside all blocks (wte, ln_f). Frozen
parameters do not count; with LoRA, a layer is its adapter. A step that is skipped, because float16 overflowed, is not
recorded. Nothing in the run changes. A recorded step reads the weights a few more times, and holds a copy of those that
are trained; the other steps cost nothing.

Source of the ratio and of its usual value: Stanford's CS231n, "Learning and evaluation", section "Ratio of
weights:updates".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...backends import array_module
from ...checks import whole_number
from ...optim.clip import sum_of_squares
from ...typing import Array
from .watch import Watch

if TYPE_CHECKING:
    from ..loop import Trainer
    from .progress import Progress

EVERY = 10  # steps, if the option is given without a number
DIGITS = 5  # significant digits recorded


def layer_of(parameter: str) -> str:
    """The layer of a parameter, by its name: h.0.attn of h.0.attn.c_attn.weight, wte of wte.weight."""
    path = parameter.split(".")[:-1]
    block = next((i for i, part in enumerate(path) if part.isdecimal()), len(path))
    return ".".join(path[: block + 2]) or parameter


class LayerWatch(Watch):
    """Records the layers' norms at each step that is a multiple of `every`."""

    def __init__(self, every: int = EVERY) -> None:
        self.every = self.layers_every = whole_number("LayerWatch", "every", every)
        self._layers: list[str] = []  # of each parameter of the trainer
        self._gradients: dict[str, float] = {}
        self._before: list[Array] | None = None  # the weights before this step, if it will be recorded

    def begin(self, trainer: Trainer, progress: Progress) -> None:
        self._layers = [layer_of(name) for name, p in trainer.model.named_parameters() if p.requires_grad]

    def before_update(self, trainer: Trainer) -> None:
        self._before = None
        if (trainer.state.step + 1) % self.every:
            return
        squares = trainer.share.gradient_squares()  # all processes must call this
        if not trainer.share.leads:
            return
        found = self._summed([squares[id(p)] for p in trainer.parameters])
        self._gradients = {name: trainer.accumulation.scale * norm for name, norm in found.items()}
        self._before = [p.data.copy() for p in trainer.parameters]

    def after_step(self, trainer: Trainer) -> list[tuple[dict[str, Any], str]]:
        updates, self._before = self._before, None
        if updates is None:
            return []
        weights = [p.data for p in trainer.parameters]
        weight = self._norms(weights)
        for now, before in zip(weights, updates, strict=True):
            array_module(now).subtract(now, before, out=before)
        update = self._norms(updates)
        found = {
            name: {
                "gradient": _rounded(self._gradients[name]), "weight": _rounded(weight[name]),
                "update": _rounded(update[name]), "ratio": _ratio(update[name], weight[name]),
            }
            for name in weight
        }  # fmt: skip
        return [({"step": trainer.state.step, "layers": found}, "")]

    def close(self) -> None:
        self._before = None

    def _norms(self, arrays: Sequence[Array]) -> dict[str, float]:
        """The norm of each layer's arrays, of which there is one for each parameter."""
        return self._summed(sum_of_squares.each([(array,) for array in arrays]))

    def _summed(self, squares: Sequence[float]) -> dict[str, float]:
        """The norm of each layer, from the sums of squares of its parameters."""
        sums = dict.fromkeys(self._layers, 0.0)
        for name, square in zip(self._layers, squares, strict=True):
            sums[name] += square
        return {name: math.sqrt(total) for name, total in sums.items()}


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _ratio(update: float, weight: float) -> float | None:
    """None if the weights are zero but were not before: then there is no ratio."""
    if weight == 0:
        return 0.0 if update == 0 else None
    return _rounded(update / weight)
