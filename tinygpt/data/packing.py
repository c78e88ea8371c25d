"""Packed rows: several short documents in one row of a batch, while `DocumentWindows` pads each of them.

A row is a contiguous part of the token file: as many whole documents as fit, with the end tokens between them. A
document that is longer than a row is cut into several, and others follow its last part. Each target counts once, as
without packing. It belongs to the same document as the token before it, or is the first token after an end token.

Attention does look back at the documents before, as in GPT-3's training: "sequences are not masked in any special way
but instead documents within a sequence are delimited with a special end of text token, giving the language model the
information necessary to infer that context separated by the end of text token is unrelated" (Brown et al., "Language
Models are Few-Shot Learners", 2020, appendix B). A mask would need another attention kernel on every backend, for rows
whose documents are random neighbours anyway. Without packing, no document sees another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ops.cross_entropy import IGNORE_INDEX
from .windows import DocumentWindows

_CHUNK = 1 << 20  # windows that are put into rows at a time: all windows of a large text would take some GB


class PackedRows(DocumentWindows):
    """Rows of documents in the order of the file. count, target_count, padded and errors: those of `DocumentWindows`.

    wasted: the positions of all rows that have no target. Holds 8 or 16 bytes for a row and for a document.
    """

    def __init__(self, tokens: Any, end_token: int, block_size: int) -> None:
        super().__init__(tokens, end_token, block_size)
        self.end_token = end_token
        found = list(self._rows())
        self.begins, self.lengths = (np.concatenate(part).astype(self.edges.dtype) for part in zip(*found, strict=True))
        self.count = len(self.begins)
        self.wasted = self.count * block_size - self.target_count
        self.padded = self.wasted > 0

    def _rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where rows begin in the tokens, and how many targets they have: (R,) each, some rows at a time."""
        first, T = 0, self.block_size
        while first < self.count:
            numbers = np.arange(first, min(first + _CHUNK + T, self.count))  # (P,) of the windows, a row has up to T
            begins, lengths, offsets = self._documents(numbers)
            begins, ends = begins + offsets, begins + np.minimum(offsets + T, lengths)
            after = np.searchsorted(ends, begins + T, side="right")  # (P,) the first window that no longer fits
            whole = len(after) if first + len(after) == self.count else len(after) - 1
            rows, next_rows, place = list[int](), after.tolist(), 0
            while place < len(after) and next_rows[place] <= whole:
                rows.append(place)
                place = next_rows[place]
            yield begins[rows], ends[after[rows] - 1] - begins[rows]
            first += place

    def random(self, windows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows by their numbers (B,). `places` is ignored: a packed row can't be moved."""
        return self.sequential(windows)

    def sequential(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of these numbers (B,): inputs and targets, (B, T) both."""
        inputs, targets = self._cut(self.begins[windows].astype(np.int64), self.lengths[windows].astype(np.int64))
        nothing = (inputs == self.end_token) & (targets == self.end_token)  # an empty document between them
        return inputs, np.where(nothing, IGNORE_INDEX, targets)
