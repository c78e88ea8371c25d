"""When a row ends: at an eos token, at a stop string, at its maximum length, or when every next token is ruled out.

Stop strings are matched on bytes, so it does not matter how the text is split into tokens: a stop string may start in
the middle of a token (even of the prompt), span several and end in the middle of another. The token in which it ends is
the last of the row. In UTF-8 no character starts inside another, so a match of bytes is a match of characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError
from .options import WHERE, GenerationConfig

EOS, STOP_STRING, LENGTH, BLOCK = "eos", "stop_string", "length", "block"
DEAD_END = "dead_end"  # options or processors rule out every next token; the tokens so far are kept


class StopStrings:
    """Searches for strings in a stream of bytes that arrives in pieces.

    The caller keeps its state, the bytes held back: the longest suffix of the stream so far that is a proper prefix of
    a stop string.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.stops = [text.encode("utf-8") for text in texts]
        self._longest = max(map(len, self.stops), default=0)

    def begin(self, prompt: bytes) -> bytes:
        """The state after a prompt. A stop string may start in the prompt, but must end after it."""
        return self._unfinished(prompt[-self._longest :]) if self.stops else b""

    def feed(self, held: bytes, piece: bytes) -> tuple[bytes, bytes, bool]:
        """Add a piece: (the bytes that are not part of a stop string, the new state, whether one was found)."""
        data = held + piece
        # A match must end in the new piece: an earlier one was found already, or lies in the prompt.
        found = [data.find(stop, max(0, len(held) - len(stop) + 1)) for stop in self.stops]
        starts = [start for start in found if start >= 0]
        if starts:
            return data[: min(starts)], b"", True
        still_held = self._unfinished(data)
        return data[: len(data) - len(still_held)], still_held, False

    def _unfinished(self, data: bytes) -> bytes:
        """The longest suffix of `data` that is a proper prefix of a stop string."""
        for start in range(max(0, len(data) - self._longest + 1), len(data)):
            end = data[start:]
            if any(len(end) < len(stop) and stop.startswith(end) for stop in self.stops):
                return end
        return b""


class Held(NamedTuple):
    """The state of a row: the bytes held back, and its last token."""

    text: bytes = b""
    last: int | None = None


class Stopping:
    """Decides after each chosen token whether its row ends, and why."""

    def __init__(self, config: GenerationConfig, tokenizer: Any) -> None:
        self.eos = frozenset(config.eos_ids)
        self.strings = StopStrings(config.stops)
        self.tokenizer = tokenizer
        if config.stops and tokenizer is None:
            raise UsageError(f"{WHERE}: stop_strings need a tokenizer, to turn tokens into text: give tokenizer=...")

    def begin(self, prompt: np.ndarray) -> Held:
        """The state of a row before its first new token."""
        if not self.strings.stops:
            return Held()
        known = prompt[prompt < self.tokenizer.vocab_size]
        last = int(known[-1]) if len(known) else None
        return Held(self.strings.begin(self.tokenizer.token_bytes(known)), last)

    def feed(self, held: Held, token: int) -> tuple[Held, str | None]:
        """The new state of a row after `token`, and the reason if it ends there."""
        found = False
        if self.strings.stops:
            new = bytes_after(self.tokenizer, held.last, np.array([token]))
            _, text, found = self.strings.feed(held.text, new)
            held = Held(text, token)
        if token in self.eos:
            return held, EOS
        return held, STOP_STRING if found else None


def bytes_after(tokenizer: Any, before: int | None, ids: np.ndarray) -> bytes:
    """`tokenizer.bytes_after`. Where a user-defined tokenizer lacks it, the bytes don't depend on `before`."""
    found: bytes = (
        tokenizer.bytes_after(before, ids) if hasattr(tokenizer, "bytes_after") else tokenizer.token_bytes(ids)
    )
    return found
