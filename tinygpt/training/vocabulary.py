"""Finds token ids outside the model's vocabulary before the first step, rather than at the batch that holds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RangeError

_CHUNK = 1 << 22  # tokens checked at a time, so that a memory-mapped file is never in memory as a whole


def check_vocabulary(part: str, tokens: Any, vocab_size: int) -> None:
    """Raise RangeError if `tokens`, (N,) integers, contain an id outside 0 .. vocab_size - 1.

    part: "training" or "validation", for the error message.
    """
    if tokens.dtype.kind == "u" and np.iinfo(tokens.dtype).max < vocab_size:
        return
    for begin in range(0, len(tokens), _CHUNK):
        chunk = tokens[begin : begin + _CHUNK]
        low, high = 0 if tokens.dtype.kind == "u" else int(chunk.min()), int(chunk.max())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            position = begin + int(np.argmax(chunk == bad))
            raise RangeError(
                f"the {part} tokens contain the id {bad} (at position {position}), but the model has the ids 0 .. "
                f"{vocab_size - 1}: were they made by another tokenizer? Encode the text again, or make a model with a "
                f"vocab_size of {high + 1} or more"
            )
