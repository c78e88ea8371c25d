"""RowDecoder: the rows of a request, and the logits of their next tokens, up to block_size tokens and beyond.

A row that fits in the block is in the decoder, which caches its keys and values, so a step computes only one token. For
a longer row, each step recomputes the last block_size tokens: positions are learned, so when the window slides every
token in it gets a new position embedding, and the cached keys and values are no longer valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..typing import Array
from .processors import Rows
from .prompt_cache import PromptCache
from .stepper import decoder_for

if TYPE_CHECKING:
    from ..gpt import GPT
    from .decoder import Decoder
    from .token_sampler import Draw

_ROOM = 1024


class RowDecoder:
    """R rows of ids that grow by one token at a time.

        decoder = RowDecoder(model, prompts, max_new_tokens)
        logits = decoder.start()             # (R, V); may be overwritten by the next step
        decoder.select(rows)                 # row r becomes a copy of old row rows[r]
        logits = decoder.step(ids)           # ids (R,) -> (R, V)

    `max_new_tokens`: the maximum number of tokens that any row gets. `cache`: may hold the beginning of a single
    prompt. `decoder.rows()`: the ids so far, read-only.
    """

    def __init__(
        self, model: GPT, prompts: Sequence[np.ndarray], max_new_tokens: int, cache: PromptCache | None = None
    ) -> None:
        self.model, self.block = model, model.config.block_size
        width = max(map(len, prompts))
        room = width + min(max_new_tokens, _ROOM)  # the table grows when this is used up
        self._table = np.zeros((len(prompts), room), dtype=np.int64)  # all rows end at the same column
        for row, prompt in zip(self._table, prompts, strict=True):
            row[width - len(prompt) : width] = prompt
        self._starts = np.array([width - len(prompt) for prompt in prompts])  # (R,)
        self._begin = self._end = width
        # The model never reads the last new token of a row.
        capacity = min(self.block, width + max(0, max_new_tokens - 1))
        self._decoder: Any = decoder_for(model, capacity) if cache is None else cache
        self._window: Decoder | None = None
        self.on_gpu = backends.name_of(model.parameters()[0].data) == "cupy"
        self._cached = np.ones(len(prompts), dtype=bool)  # (R,) which rows are in the decoder, in the same order

    def rows(self) -> Rows:
        """The ids of each row so far, including the prompt: read-only arrays (length,)."""
        table = self._table[:, : self._end]
        table.flags.writeable = False
        return Rows([row[start:] for row, start in zip(table, self._starts, strict=True)], self._end - self._begin)

    def start(self) -> np.ndarray:
        """The logits (R, V) after the prompts. Of a prompt longer than the block, the last block_size tokens count."""
        return backends.move(self._decoder.prefill([row[-self.block :] for row in self.rows()]), "numpy")

    def select(self, rows: np.ndarray) -> None:
        """Row r becomes a copy of old row rows[r]; rows not in `rows` are dropped."""
        if len(rows) == len(self._table) and (rows == np.arange(len(rows))).all():
            return
        if self._cached.any():
            index = np.cumsum(self._cached) - 1  # of each cached row in the decoder
            self._decoder.select(index[rows[self._cached[rows]]])
        self._table, self._starts, self._cached = self._table[rows], self._starts[rows], self._cached[rows]

    def step(self, ids: np.ndarray, draw: Draw | None = None) -> Array:
        """Append one token to each row, ids (R,) int64, and return the logits (R, V) after it.

        They are a NumPy array or, with `draw`, may be the decoder's own array on a GPU, or the ids (R,) there that
        `draw` chose from them.
        """
        if self._end == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._table[:, self._end] = ids
        self._end += 1
        self._drop_full_rows()
        if self._cached.all():
            return backends.move(self._decoder.step(ids), "numpy") if draw is None else self._decoder.step(ids, draw)
        if not self._cached.any():
            return self._read_windows()
        cached = backends.move(self._decoder.step(ids[self._cached]), "numpy")
        together = np.empty((len(ids), cached.shape[1]), dtype=cached.dtype)
        together[self._cached], together[~self._cached] = cached, self._read_windows()
        return together

    def _drop_full_rows(self) -> None:
        """Remove the rows that have outgrown the block from the decoder."""
        fits = self._end - self._starts <= self.block
        if (self._cached & ~fits).any():
            if fits.any():
                self._decoder.select(np.flatnonzero(fits[self._cached]))
            self._cached &= fits

    def _read_windows(self) -> np.ndarray:
        """The logits of the rows that are longer than the block, from their last block_size tokens."""
        if self._window is None:
            # Reuse the first decoder if it has no rows left: prefill replaces its contents.
            reusable = not self._cached.any() and self._decoder.capacity == self.block
            self._window = self._decoder if reusable else decoder_for(self.model, self.block)
        rows = self._table[~self._cached, self._end - self.block : self._end]
        return backends.move(self._window.prefill(list(rows)), "numpy")
