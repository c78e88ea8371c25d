"""Windows of a text that consists of documents: none reaches from one document into another.

Documents are separated by the end token. A window begins with the end token before its document, from which a model
learns how documents begin, and its last target may be the end token after it, from which it learns how they end.
Nothing in between belongs to another document, so causal attention needs no mask. A document that is shorter than the
window is padded on the right, where attention never looks, with targets that the loss ignores.

A document of n targets has ceil(n / T) windows. Windows are drawn uniformly, which gives each token about the same
chance, whether its document is short or long. Drawing documents uniformly would favour the tokens of short ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UsageError
from ..ops.cross_entropy import IGNORE_INDEX

_CHUNK = 1 << 22  # tokens searched at a time, so that a memory-mapped file is never in memory as a whole


class DocumentWindows:
    """The windows of `block_size` tokens in the documents of `tokens` (N,), which `end_token` separates.

    count: their number. target_count: the number of their targets, each counted once. padded: whether a document is
    shorter than the block. Takes 8 or 16 bytes per document. Raises UsageError if there is none.
    """

    def __init__(self, tokens: Any, end_token: int, block_size: int) -> None:
        self.tokens, self.block_size = tokens, block_size
        # Document d is tokens[edges[d] : edges[d + 1] + 1], the end tokens on both sides included: those are shared.
        self.edges = _edges(tokens, end_token)  # (D + 1,)
        lengths = np.diff(self.edges)  # (D,) targets
        empty = lengths == 1  # two end tokens in a row, or a whole document of one token at either end of the text
        for place in {0, len(lengths) - 1} if len(lengths) else ():
            pair = tokens[self.edges[place]], tokens[self.edges[place + 1]]
            empty[place] &= pair[0] == end_token and pair[1] == end_token
        lengths[empty] = 0
        self.ends = np.cumsum(-(-lengths.astype(np.int64) // block_size), dtype=self.edges.dtype)  # (D,)
        self.count = int(self.ends[-1]) if len(self.ends) else 0
        if self.count == 0:
            raise UsageError("the text has no document with a token to predict: use a longer text")
        self.target_count = int(lengths.sum(dtype=np.int64))
        self.padded = bool((lengths[~empty] < block_size).any())

    def random(self, windows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows by their numbers (B,), each moved to a random position in its document: places (B,), in [0, 1).

        Returns inputs and targets, (B, T) both.
        """
        begins, lengths, _ = self._documents(windows)
        free = np.maximum(lengths - self.block_size, 0) + 1  # (B,) places where a whole window fits
        return self._cut(begins + (places * free).astype(np.int64), lengths)

    def sequential(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows of these numbers (B,): those of a document follow each other without overlap."""
        begins, lengths, offsets = self._documents(windows)
        return self._cut(begins + offsets, lengths - offsets)

    def _documents(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the documents of these windows begin, their targets, and how many targets come before the window."""
        documents = np.searchsorted(self.ends, windows, side="right")  # (B,)
        begins = self.edges[documents].astype(np.int64)
        lengths = self.edges[documents + 1].astype(np.int64) - begins
        before = np.where(documents > 0, self.ends[documents - 1].astype(np.int64), 0)
        return begins, lengths, (windows - before) * self.block_size

    def _cut(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """inputs and targets from `starts` (B,), of which the first `lengths` (B,) count."""
        steps = np.arange(self.block_size + 1)  # (T+1,)
        within = steps <= lengths[:, None]  # (B, T+1)
        found = np.asarray(self.tokens[np.where(within, starts[:, None] + steps, starts[:, None])]).astype(np.int64)
        inputs, targets = found[:, :-1], found[:, 1:]
        real = within[:, 1:]  # (B, T)
        return np.where(real, inputs, 0), np.where(real, targets, IGNORE_INDEX)


def _edges(tokens: Any, end_token: int) -> np.ndarray:
    """The positions of the end tokens, and of the first and the last token: uint32 if they fit."""
    count = len(tokens)
    kind = np.uint32 if count < 1 << 32 else np.int64
    found = [
        (begin + np.flatnonzero(np.asarray(tokens[begin : begin + _CHUNK]) == end_token)).astype(kind)
        for begin in range(0, count, _CHUNK)
    ]
    edges = np.concatenate([np.zeros(1, kind), *found, np.full(1, max(count - 1, 0), kind)])
    first, last = int(len(edges) > 2 and edges[1] == 0), int(len(edges) > 2 and edges[-2] == count - 1)
    edges = edges[first : len(edges) - last]
    return edges[:1] if len(edges) == 2 and edges[0] == edges[1] else edges
