"""A decoder for models with user-defined layers. It only calls the model and makes no assumption about its layers.

The weights of a subclass, a replaced layer or a patched `forward` do not tell what it computes, or what it would have
to cache. So each step runs the model over the whole of each row: slow, but the result is that of the model's own
`forward`, as in training and scoring. Rows run one at a time, so they do not affect each other and need no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import backends
from ..graph import no_grad
from ..typing import Array
from .decoder import Decoder, Joining
from .decoder_checks import obstacle_to_a_cache

if TYPE_CHECKING:
    from ..gpt import GPT
    from .token_sampler import Draw


def decoder_for(model: GPT, capacity: int | None = None) -> Decoder:
    """The right decoder for `model`: with a cache if every layer supports one, else a `Stepper`."""
    return Decoder(model, capacity) if obstacle_to_a_cache(model) is None else Stepper(model, capacity)


class Stepper(Decoder):
    """B texts under one model, without a cache."""

    _cached = False

    def _start(self) -> None:
        self._rows: list[np.ndarray] = []

    def _open(self) -> None:
        """There is nothing to make."""

    def _begin(self, rows: list[Array]) -> Array:
        self._rows = [backends.move(row[0], "numpy") for row in rows]
        return self._logits(self._rows)

    def _append(self, joining: Sequence[Joining]) -> Array:
        new = [backends.move(reader.ids[0], "numpy") for reader, _ in joining]
        logits = self._logits(new)
        self._rows = self._rows + [row for row, (_, copies) in zip(new, joining, strict=True) for _ in range(copies)]
        return logits

    def _grow(self, B: int) -> None:
        """Nothing is reserved: the rows are a list."""

    def _continue(self, row: int, new: Array) -> Array:
        longer = np.append(self._rows[row], backends.move(new[0], "numpy"))
        logits = self._logits([longer])
        self._rows[row] = longer
        return logits

    def _shorten(self, lengths: np.ndarray) -> None:
        self._rows = [row[:length] for row, length in zip(self._rows, lengths, strict=True)]

    def _extend(self, ids: np.ndarray, draw: Draw | None = None) -> Array:
        self._rows = [np.append(row, token) for row, token in zip(self._rows, ids, strict=True)]
        return self._logits(self._rows)

    def _reorder(self, rows: np.ndarray) -> None:
        self._rows = [self._rows[row] for row in rows]

    def _logits(self, rows: list[np.ndarray]) -> Array:
        """The logits (B, V) after each row."""
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            logits = [self.model.next_logits(row[None]).data for row in rows]
        weight = self.model.parameters()[0].data
        xp = backends.array_module(weight)
        return xp.concatenate(logits) if logits else xp.empty((0, self.model.config.vocab_size), weight.dtype)
