"""A decoder without a cache, of the same interface as `tinygpt.generation.decoder.Decoder`: slow, obvious, the oracle.

Every call runs the whole model on each row by itself.
"""

from __future__ import annotations

import numpy as np

from tinygpt import no_grad


class SlowDecoder:
    def __init__(self, model, capacity):
        assert 1 <= capacity <= model.config.block_size
        self.model, self.capacity, self.rows = model, capacity, []

    @property
    def lengths(self):
        return np.array([len(row) for row in self.rows], dtype=np.int64)

    def prefill(self, prompts):
        self.rows = [np.array(prompt) for prompt in prompts]
        return self._logits()

    def step(self, ids):
        assert len(ids) == len(self.rows)
        self.rows = [np.append(row, token) for row, token in zip(self.rows, ids, strict=True)]
        return self._logits()

    def select(self, rows):
        self.rows = [self.rows[row] for row in rows]

    def _logits(self):
        assert all(1 <= len(row) <= self.capacity for row in self.rows)
        with no_grad(), self.model.evaluating():
            return np.concatenate([self.model.next_logits(row[None]).numpy() for row in self.rows])
