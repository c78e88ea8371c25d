"""Statistics of each layer: the size of the activations, and of the gradients of a loss with respect to them.

A residual stream that grows from block to block, gradients that vanish or explode on the way back, a layer that is all
zeros: this is what to look at first when a run does not learn.

Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..function import Function
from ..language_model import LanguageModel
from ..tensor import Tensor
from ..typing import Array, Ids
from .hooks import Hook, hooked, once
from .text import AnyModel, block_names, frozen, host, one_text


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation, root mean square, largest magnitude and share of zeros of the numbers in an array."""

    mean: float
    std: float
    rms: float
    largest: float
    zeros: float

    @classmethod
    def of(cls, array: np.ndarray) -> Summary:
        """Computed in float64."""
        x = array.astype(np.float64)
        rms, largest = float(np.sqrt((x * x).mean())), float(np.abs(x).max())
        return cls(float(x.mean()), float(x.std()), rms, largest, float((x == 0).mean()))


@dataclass(frozen=True)
class LayerStatistics:
    """activation: at a place. gradient: of the loss with respect to it; None if the loss does not depend on it."""

    activation: Summary
    gradient: Summary | None


class Tap(Function):
    """y = x. The backward pass also hands the gradient to `see`."""

    def forward(self, x: Array, see: Callable[[Array], None]) -> Array:
        self.see = see
        return x

    def backward(self, dy: Array) -> Array:
        self.see(dy)
        return dy


def layer_statistics(
    model: AnyModel,
    ids: Ids,
    names: str | Sequence[str] | None = None,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> dict[str, LayerStatistics]:
    """Activations, and the loss's gradients at them, when the model reads `ids`, (T,) integers: name -> statistics.

    names: places in the model, as for `hooked`; None: the residual stream, "h.0.input" and each block.
    loss: a function (model, idx (1, T)) -> a tensor of one number; None: the language model's loss on this text.
    Raises UsageError for a name that does not exist; ShapeError, DtypeError, RangeError for wrong ids.
    """
    where = "layer_statistics"
    if loss is None and not isinstance(model, LanguageModel):
        raise UsageError(f"{where}: a {type(model).__name__} needs a loss, a function (model, idx) -> tensor")
    idx = one_text(where, model, ids, at_least=2 if loss is None else 1)
    names = block_names(where, model) if names is None else [names] if isinstance(names, str) else list(names)
    places = {name: _Place() for name in names}
    with frozen(model), hooked(model, {name: place.hook for name, place in places.items()}):
        value = model.loss(idx, labels=idx) if loss is None else loss(model, idx)
        value.backward()
    return {name: place.statistics(where, name) for name, place in places.items()}


class _Place:
    """What was seen at one place."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.gradient: np.ndarray | None = None

    @property
    def hook(self) -> Hook:
        return self._see

    def _see(self, x: Tensor) -> Tensor:
        """The same numbers, with a gradient: the parameters are frozen, so before the first place there is none."""
        self.values.append(x)
        return Tap.apply(x if x.requires_grad else Tensor(x.data, requires_grad=True), see=self._see_gradient)

    def _see_gradient(self, dy: Array) -> None:
        self.gradient = host(dy)

    def statistics(self, where: str, name: str) -> LayerStatistics:
        activation = Summary.of(host(once(where, name, self.values).data))
        return LayerStatistics(activation, None if self.gradient is None else Summary.of(self.gradient))
