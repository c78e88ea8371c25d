"""Finds token ids outside the vocabulary before they are used, rather than at the batch that holds them."""

from __future__ import annotations

import numpy as np

from ..errors import RangeError

_CHUNK = 1 << 22  # tokens checked at a time, so that a memory-mapped file is never in memory as a whole


def check_range(tokens: np.ndarray, vocab_size: int, name: str) -> None:
    """Raise RangeError if `tokens`, (N,) integers, contain an id outside 0 .. vocab_size - 1."""
    outside = first_outside(tokens, vocab_size)
    if outside is not None:
        raise RangeError(
            f"{name} has the id {outside[1]} at position {outside[0]}, but a vocabulary of {vocab_size} has the ids "
            f"0 .. {vocab_size - 1}: was it made by another tokenizer?"
        )


def first_outside(tokens: np.ndarray, vocab_size: int) -> tuple[int, int] | None:
    """The position and the id of the first token outside 0 .. vocab_size - 1, or None."""
    unsigned = tokens.dtype.kind == "u"
    if unsigned and np.iinfo(tokens.dtype).max < vocab_size:
        return None
    for begin in range(0, len(tokens), _CHUNK):
        chunk = np.asarray(tokens[begin : begin + _CHUNK])
        if (not unsigned and chunk.min() < 0) or chunk.max() >= vocab_size:
            offset = int(((chunk < 0) | (chunk >= vocab_size)).argmax())
            return begin + offset, int(chunk[offset])
    return None
