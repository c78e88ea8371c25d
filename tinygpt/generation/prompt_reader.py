"""Read a prompt in pieces, between steps of a decoder whose rows go on meanwhile.

    reader = decoder.reader(prompt)                 # ids (T,)
    while reader.rest:
        reader.read(64)                             # the next 64 tokens, or as many as there are
        decoder.step(ids)                           # the rows of `decoder` don't see the reader
    logits = decoder.join(reader, copies=2)         # two more rows

The result depends only on the prompt and on how it is cut into pieces. So keys and values that another reader computed
for the same beginning, cut in the same way, can be reused: `copy_of` and `put`. The logits are then the same, bit for
bit. A prompt in several pieces differs from the same prompt in one by rounding.

`read_together([(reader, 64), (other, 9)])` reads the next pieces of several prompts in one pass, with the same result.

Memory: 2 n_layer n_embd numbers for each token of the prompt, until it joins.
Source: Agrawal et al., "Sarathi: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph import no_grad

if TYPE_CHECKING:
    from ..gpt import GPT
    from .joint_prompts import JointPrompts

Span = Sequence[tuple[Any, Any]]  # keys and values of some tokens in each block, (1, H, tokens, D)


class PromptReader:
    """A prompt (T,) that is being read. cached: whether the model can continue a text; if not, `join` reads all of it.
    joint: how it is read together with others; None: it can't be.

    Raises ShapeError, DtypeError, RangeError for ids that the model can't have.
    """

    def __init__(self, model: GPT, prompt: Any, cached: bool = True, joint: JointPrompts | None = None) -> None:
        self.model, self.joint, self.ids = model, joint, model.check_ids([prompt])  # (1, T)
        self.length = 0  # tokens read so far
        self.cache = model.new_cache(1, self.size) if cached else None
        self.hidden: Any = None  # (C,) the input of the head, for the token after those read so far

    @property
    def size(self) -> int:
        """The number of tokens of the prompt, T."""
        return int(self.ids.shape[1])

    @property
    def rest(self) -> int:
        """How many tokens are still to be read."""
        return self.size - self.length

    def read(self, count: int) -> None:
        """Read the next `count` tokens, or as many as there are."""
        read_together([(self, count)])

    def _read_alone(self, end: int) -> None:
        model = self.model
        with no_grad(), model.evaluating(), model.compute_in("float32"):
            self.hidden = model.hidden(self.ids[:, self.length : end], self.cache).data[0, -1]

    def copy_of(self, begin: int, end: int) -> Span:
        """The keys and values of tokens begin .. end - 1, already read. Empty for a model without a cache."""
        return [
            (layer.keys[:, :, begin:end].copy(), layer.values[:, :, begin:end].copy()) for layer in self.cache or ()
        ]

    def put(self, span: Span) -> None:
        """Take the keys and values of the next tokens from a reader of the same beginning, instead of reading them.

        At least one token must be left to be read: the token after the prompt depends on it.
        """
        if not span or self.cache is None:
            return
        end = self.length + span[0][0].shape[2]
        for layer, (keys, values) in zip(self.cache, span, strict=True):
            layer.keys[:, :, self.length : end], layer.values[:, :, self.length : end] = keys, values
        self._at(end)

    def _at(self, end: int) -> None:
        self.length = end
        for layer in self.cache or ():
            layer.lengths = layer.places = np.array([end])


def read_together(pieces: Sequence[tuple[PromptReader, int]]) -> None:
    """`reader.read(count)` for each (reader, count). The readers belong to one decoder, each to a different prompt.

    After an error, all of them are where they were.
    """
    ends = [(reader, min(reader.length + count, reader.size)) for reader, count in pieces]
    reading = [(reader, end) for reader, end in ends if reader.cache is not None and end > reader.length]
    joint = reading[0][0].joint if reading else None
    if joint is not None:
        ids = [reader.ids[0, reader.length : end] for reader, end in reading]
        found = joint(ids, [reader.cache or () for reader, _ in reading])
        for (reader, _), hidden in zip(reading, found, strict=True):
            reader.hidden = hidden
    else:
        for reader, end in reading:
            reader._read_alone(end)
    for reader, end in ends:
        reader._at(end)
