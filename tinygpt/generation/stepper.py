"""A decoder for models with layers of the user's own: it calls the model, and knows nothing of what is inside.

What a subclass, a replaced layer or a patched `forward` computes can't be told from its weights, and neither can what
it would have to keep of earlier tokens. So each step runs the model over the whole of each row: slow, and the same
numbers as the model's own `forward`, which is what training and scoring see. Rows run one by one, so that the others of
a batch don't matter and there is no padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..graph import no_grad
from .decoder import Decoder, obstacle_to_a_cache

if TYPE_CHECKING:
    from ..gpt import GPT


def decoder_for(model: GPT, capacity: int | None = None) -> Decoder:
    """The decoder that is right for `model`: with a cache where every layer can go on with a text."""
    return Decoder(model, capacity) if obstacle_to_a_cache(model) is None else Stepper(model, capacity)


class Stepper(Decoder):
    """B texts under one model, without a cache."""

    def _start(self) -> None:
        self._rows: list[np.ndarray] = []

    def _begin(self, rows: list[Any]) -> Any:
        self._rows = [backends.move(row[0], "numpy") for row in rows]
        return self._logits()

    def _extend(self, ids: np.ndarray) -> Any:
        self._rows = [np.append(row, token) for row, token in zip(self._rows, ids, strict=True)]
        return self._logits()

    def _reorder(self, rows: np.ndarray) -> None:
        self._rows = [self._rows[row] for row in rows]

    def _logits(self) -> Any:
        """(B, V) after all rows."""
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            logits = [self.model.next_logits(row[None]).data for row in self._rows]
        weight = self.model.parameters()[0].data
        xp = backends.array_module(weight)
        return xp.concatenate(logits) if logits else xp.empty((0, self.model.config.vocab_size), weight.dtype)
