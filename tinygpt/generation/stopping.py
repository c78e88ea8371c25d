"""When a row ends: at an eos token, at a stop string, at its greatest length, or where no token may follow.

Stop strings are searched in bytes, so that it does not matter how the text is cut into tokens: one may begin in the
middle of a token, run over several (and over the end of the prompt) and end in the middle of another. The token in
which it ends is the row's last. UTF-8 lets no character begin inside another, so a match of bytes is one of characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DtypeError, UsageError
from .options import WHERE, GenerationConfig

EOS, STOP_STRING, LENGTH, BLOCK = "eos", "stop_string", "length", "block"
DEAD_END = "dead_end"  # every next token is ruled out, by options or processors: the row keeps what it has


class StopStrings:
    """Looks for texts in a stream of bytes that comes in pieces.

    Its state, kept by the caller, is the bytes held back: the longest end of what came that could be the beginning of
    a stop string.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.stops = [text.encode("utf-8") for text in texts]
        self._longest = max(map(len, self.stops), default=0)

    def begin(self, prompt: bytes) -> bytes:
        """The state after a prompt: a stop string may begin in it, but not end."""
        return self._unfinished(prompt[-self._longest :]) if self.stops else b""

    def feed(self, held: bytes, piece: bytes) -> tuple[bytes, bytes, bool]:
        """What came before a stop string or can no longer be part of one, the new state, and whether one was found."""
        data = held + piece
        # Each must end in the new piece: what was complete before has been found, or is the prompt's.
        found = [data.find(stop, max(0, len(held) - len(stop) + 1)) for stop in self.stops]
        starts = [start for start in found if start >= 0]
        if starts:
            return data[: min(starts)], b"", True
        new = self._unfinished(data)
        return data[: len(data) - len(new)], new, False

    def _unfinished(self, data: bytes) -> bytes:
        """The longest end of `data` that is a beginning, but not the whole, of a stop string."""
        for start in range(max(0, len(data) - self._longest + 1), len(data)):
            end = data[start:]
            if any(len(end) < len(stop) and stop.startswith(end) for stop in self.stops):
                return end
        return b""


class Stopping:
    """Says of each chosen token whether its row ends there, and why."""

    def __init__(self, config: GenerationConfig, tokenizer: Any) -> None:
        self.eos = frozenset(config.eos_ids)
        self.strings = StopStrings(config.stops)
        self.tokenizer = tokenizer
        if config.stops and tokenizer is None:
            raise UsageError(f"{WHERE}: stop_strings are a matter of text, so give the tokenizer too: tokenizer=...")

    def begin(self, prompt: np.ndarray) -> bytes:
        """The state of a row before its first token."""
        if not self.strings.stops:
            return b""
        known = prompt[prompt < self.tokenizer.vocab_size]
        return self.strings.begin(self.tokenizer.token_bytes(known))

    def feed(self, held: bytes, token: int) -> tuple[bytes, str | None]:
        """The new state of a row that got `token`, and why it ends, if it does."""
        found = False
        if self.strings.stops:
            _, held, found = self.strings.feed(held, self.tokenizer.token_bytes(np.array([token])))
        if token in self.eos:
            return held, EOS
        return held, STOP_STRING if found else None


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is not a tokenizer as `tinygpt.tokenizers` has them."""
    if tokenizer is not None and not (hasattr(tokenizer, "token_bytes") and hasattr(tokenizer, "vocab_size")):
        raise DtypeError(f"{WHERE}: tokenizer must be one of tinygpt.tokenizers, not {type(tokenizer).__name__}")
