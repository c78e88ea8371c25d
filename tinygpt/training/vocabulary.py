"""Ids that the model does not have, found before the first step and not by the batch that comes upon them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RangeError

_STRETCH = 1 << 22  # tokens looked at together: a memory-mapped file is never in memory as a whole


def check_vocabulary(part: str, tokens: Any, vocab_size: int) -> None:
    """Raise RangeError when `tokens`, (N,) integers, hold an id that isn't in 0 .. vocab_size - 1.

    part: which text it is, for the sentence.
    """
    if tokens.dtype.kind == "u" and np.iinfo(tokens.dtype).max < vocab_size:
        return
    for begin in range(0, len(tokens), _STRETCH):
        stretch = tokens[begin : begin + _STRETCH]
        low, high = 0 if tokens.dtype.kind == "u" else int(stretch.min()), int(stretch.max())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            place = begin + int(np.argmax(stretch == bad))
            raise RangeError(
                f"the {part} tokens hold the id {bad} (at place {place}), but the model has the ids 0 .. "
                f"{vocab_size - 1}: were they made by another tokenizer? Encode the text anew, or make a model with a "
                f"vocab_size of {high + 1} or more"
            )
