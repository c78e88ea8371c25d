"""Keys and values of the beginnings of prompts, kept for other prompts with the same one: a system prompt, or the
turns of a dialogue so far, is read once.

Prompts are read in pieces of a fixed number of tokens, cut at multiples of it. A piece is found by its tokens and by
all those before it, so the whole beginning is the same, and so is the way it was cut: a text has the same logits, bit
for bit, whether the beginning of its prompt was found here or not. Keys and values of tokens that were generated are
not kept, since they may differ by rounding from those of tokens that are read.

Memory is bounded: the least recently used pieces are dropped. Using a piece uses those before it too, so the last piece
of a beginning is dropped first.

Source: Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", 2023, section 3.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from ..generation.prompt_reader import PromptReader, Span

Key = tuple[int, bytes]  # the number of the piece before it, 0 for none, and the tokens


class _Piece(NamedTuple):
    number: int
    span: Span
    size: int  # bytes


class Prefixes:
    """piece: tokens in each; most_bytes: of all keys and values together. For one thread."""

    def __init__(self, piece: int, most_bytes: int) -> None:
        self.piece, self.most_bytes, self.bytes = piece, most_bytes, 0
        self._pieces = OrderedDict[Key, _Piece]()  # the most recently used is last
        self._count = 0

    def known(self, prompt: np.ndarray) -> int:
        """How many tokens `put_into` would give a new reader of `prompt`."""
        return len(self._known(prompt[:-1])) * self.piece

    def put_into(self, reader: PromptReader, prompt: np.ndarray) -> int:
        """Give a new reader of `prompt` (T,) all that is known of it -> the number of tokens.

        At least one token is left to be read.
        """
        keys = self._known(prompt[: reader.size - 1])
        for key in keys:
            reader.put(self._pieces[key].span)
        self._touch(keys)
        return reader.length

    def keep(self, reader: PromptReader, prompt: np.ndarray) -> None:
        """Keep the last piece that a reader of `prompt` has read, if it is whole."""
        end = reader.length
        if end % self.piece:
            return
        keys, span = self._known(prompt[:end]), reader.copy_of(end - self.piece, end)
        size = sum(keys_.nbytes + values.nbytes for keys_, values in span)
        if len(keys) != end // self.piece - 1 or not 0 < size <= self.most_bytes:
            return  # there already, or what is before it didn't fit
        self._count += 1
        before = self._pieces[keys[-1]].number if keys else 0
        keys.append((before, prompt[end - self.piece : end].tobytes()))
        self._pieces[keys[-1]] = _Piece(self._count, span, size)
        self.bytes += size
        self._touch(keys)
        while self.bytes > self.most_bytes:
            self.bytes -= self._pieces.popitem(last=False)[1].size

    def _known(self, prompt: np.ndarray) -> list[Key]:
        """The pieces of the beginning of `prompt` that are here, from the first on."""
        found, number = list[Key](), 0
        for end in range(self.piece, len(prompt) + 1, self.piece):
            key = (number, prompt[end - self.piece : end].tobytes())
            if key not in self._pieces:
                break
            found.append(key)
            number = self._pieces[key].number
        return found

    def _touch(self, keys: list[Key]) -> None:
        for key in reversed(keys):
            self._pieces.move_to_end(key)
