"""RowDecoder: the rows of a request, and the model's logits after each of them, within the block and past it.

A row that fits the block lives in the decoder, which keeps its keys and values: a step reads one token. A row longer
than the block gets its logits from the last block_size tokens, computed anew at each step: positions are learned, so
when the window slides each of its tokens gets a new one, and nothing that was kept for the old ones holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from .processors import Rows
from .stepper import decoder_for

if TYPE_CHECKING:
    from ..gpt import GPT

_ROOM = 1024


class RowDecoder:
    """R rows of ids that grow by one token at a time.

        decoder = RowDecoder(model, prompts, max_new_tokens)
        logits = decoder.start()             # (R, V); may be overwritten by the next step
        decoder.select(rows)                 # row r becomes a copy of old row rows[r]
        logits = decoder.step(ids)           # ids (R,) -> (R, V)

    `max_new_tokens`: the most tokens that any row is given. `decoder.rows()` are the ids so far, read-only.
    """

    def __init__(self, model: GPT, prompts: Sequence[np.ndarray], max_new_tokens: int) -> None:
        self.model, self.block = model, model.config.block_size
        width = max(map(len, prompts))
        room = width + min(max_new_tokens, _ROOM)  # it grows when it is used up
        self._table = np.zeros((len(prompts), room), dtype=np.int64)  # all rows end in one column
        for row, prompt in zip(self._table, prompts, strict=True):
            row[width - len(prompt) : width] = prompt
        self._starts = np.array([width - len(prompt) for prompt in prompts])  # (R,)
        self._begin = self._end = width
        # The last token that a row is given is not read any more.
        self._decoder = decoder_for(model, min(self.block, width + max(0, max_new_tokens - 1)))
        self._window: Any = None
        self._kept = np.ones(len(prompts), dtype=bool)  # which rows live in the decoder, in their order

    def rows(self) -> Rows:
        """The ids of each row so far, prompt included: arrays (length,) that can't be written to."""
        table = self._table[:, : self._end]
        table.flags.writeable = False
        return Rows([row[start:] for row, start in zip(table, self._starts, strict=True)], self._end - self._begin)

    def start(self) -> np.ndarray:
        """The logits (R, V) after the prompts, of a prompt longer than the block after its last block_size tokens."""
        return backends.move(self._decoder.prefill([row[-self.block :] for row in self.rows()]), "numpy")

    def select(self, rows: np.ndarray) -> None:
        """Row r becomes a copy of old row rows[r]; rows not named are dropped."""
        if len(rows) == len(self._table) and (rows == np.arange(len(rows))).all():
            return
        if self._kept.any():
            places = np.cumsum(self._kept) - 1  # of the rows in the decoder
            self._decoder.select(places[rows[self._kept[rows]]])
        self._table, self._starts, self._kept = self._table[rows], self._starts[rows], self._kept[rows]

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Give each row its next token, (R,) int64, and return the logits (R, V) after it."""
        if self._end == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._table[:, self._end] = ids
        self._end += 1
        self._drop_full_rows()
        if self._kept.all():
            return backends.move(self._decoder.step(ids), "numpy")
        if not self._kept.any():
            return self._read_windows()
        kept = backends.move(self._decoder.step(ids[self._kept]), "numpy")
        logits = np.empty((len(ids), kept.shape[1]), dtype=kept.dtype)
        logits[self._kept], logits[~self._kept] = kept, self._read_windows()
        return logits

    def _drop_full_rows(self) -> None:
        """Take the rows that outgrow the block out of the decoder."""
        stay = self._end - self._starts <= self.block
        if (self._kept & ~stay).any():
            if stay.any():
                self._decoder.select(np.flatnonzero(stay[self._kept]))
            self._kept &= stay

    def _read_windows(self) -> np.ndarray:
        """The logits of the rows that are longer than the block, from their last block_size tokens."""
        if self._window is None:
            # With no row left in it, the old decoder serves: prefill begins anew.
            whole = not self._kept.any() and self._decoder.capacity == self.block
            self._window = self._decoder if whole else decoder_for(self.model, self.block)
        rows = self._table[~self._kept, self._end - self.block : self._end]
        return backends.move(self._window.prefill(list(rows)), "numpy")
