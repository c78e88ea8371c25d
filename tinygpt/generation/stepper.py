"""A decoder for models with layers of the user's own: it calls the model, and knows nothing of what is inside.

What a subclass, a replaced layer or a patched `forward` computes can't be told from its weights, and neither can what
it would have to keep of earlier tokens. So each step runs the model over the whole of each row: slow, and the same
numbers as the model's own `forward`, which is what training and scoring see. Rows run one by one, so that the others of
a batch don't matter and there is no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..errors import RangeError, ShapeError, UsageError
from ..graph import no_grad
from ..plain_gpt import difference_from_gpt2
from .decoder import Decoder, checked_capacity, integers

if TYPE_CHECKING:
    from ..gpt import GPT


def decoder_for(model: GPT, capacity: int | None = None) -> Decoder | Stepper:
    """The decoder that is right for `model`: with a cache where every part of the model is known."""
    return Decoder(model, capacity) if difference_from_gpt2(model) is None else Stepper(model, capacity)


class Stepper:
    """B texts under one model, with the methods of `Decoder`."""

    def __init__(self, model: GPT, capacity: int | None = None) -> None:
        self.model, self.capacity = model, checked_capacity(model, capacity)
        self._rows: list[np.ndarray] = []

    @property
    def lengths(self) -> np.ndarray:
        """(B,) tokens that each row holds."""
        return np.array([len(row) for row in self._rows], dtype=np.int64)

    def prefill(self, prompts: Sequence[Any]) -> Any:
        """Begin anew with `prompts`, B arrays of ids -> logits (B, V). Raises as `Decoder.prefill`."""
        rows = [backends.move(self.model.check_ids([prompt])[0], "numpy") for prompt in prompts]
        longest = max(map(len, rows), default=0)
        if longest > self.capacity:
            raise ShapeError(
                f"Decoder.prefill: a prompt of {longest} tokens is longer than the capacity, {self.capacity}"
            )
        self._rows = rows
        return self._logits()

    def step(self, ids: Any) -> Any:
        """The next token of each row, (B,) integers -> logits (B, V). Raises as `Decoder.step`."""
        ids = integers("Decoder.step: ids", ids)
        if len(ids) != len(self._rows):
            raise ShapeError(f"Decoder.step: ids must be {len(self._rows)}, one for each row, not {len(ids)}")
        if len(ids) and self.lengths.max() >= self.capacity:
            raise UsageError(f"Decoder.step: row {self.lengths.argmax()} is full: it holds {self.capacity} tokens")
        self._rows = [np.append(row, token) for row, token in zip(self._rows, ids, strict=True)]
        return self._logits()

    def select(self, rows: Any) -> None:
        """Row r becomes what row rows[r] was. Raises as `Decoder.select`."""
        rows = integers("Decoder.select: rows", rows)
        B = len(self._rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= B):
            raise RangeError(f"Decoder.select: rows must be in 0 .. {B - 1}, not {rows.min()} .. {rows.max()}")
        self._rows = [self._rows[row] for row in rows]

    def _logits(self) -> Any:
        """(B, V) after all rows; ids that the model does not have are refused by the model."""
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            logits = [self.model.next_logits(row[None]).data for row in self._rows]
        weight = self.model.parameters()[0].data
        xp = backends.array_module(weight)
        return xp.concatenate(logits) if logits else xp.empty((0, self.model.config.vocab_size), weight.dtype)
