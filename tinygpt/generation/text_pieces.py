"""The text of tokens: only complete characters, and never any part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .options import GenerationConfig
from .stopping import StopStrings, bytes_after

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer


def text_of(new: np.ndarray, tokenizer: Tokenizer, prompt: np.ndarray, config: GenerationConfig) -> str:
    """The text that `stream_text` would yield for the generated tokens `new` (N,) after `prompt` (T,)."""
    return "".join(pieces_of(iter(new[:, None]), tokenizer, prompt, config, skip_special_tokens=True))


def pieces_of(
    tokens: Iterator[np.ndarray],
    tokenizer: Any,
    prompt: np.ndarray,
    config: GenerationConfig,
    skip_special_tokens: bool,
) -> Iterator[str]:
    """Decode tokens (1,) after the prompt, up to a stop string. Yield each piece once it can't be part of one."""
    pieces = TextPieces(tokenizer, prompt, config, skip_special_tokens)
    for ids in tokens:
        if text := pieces.feed(int(ids[0])):
            yield text
    if text := pieces.end():
        yield text


class TextPieces:
    """Tokens in, one at a time; pieces of the text out, each once it is certain: see `stream_text`."""

    def __init__(
        self, tokenizer: Any, prompt: np.ndarray, config: GenerationConfig, skip_special_tokens: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self._hidden = {*config.eos_ids, *getattr(tokenizer, "special_ids", ())} if skip_special_tokens else set()
        self._stops, self._utf8 = StopStrings(config.stops), codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held, self._before = self._stops.begin(tokenizer.token_bytes(prompt)), int(prompt[-1])
        self._of_prompt = len(self._held)  # held-back bytes of the prompt, which are not part of the output

    def feed(self, token: int) -> str:
        """The text that is certain now that `token` is there; often "", or that of several tokens."""
        if token in self._hidden:
            return ""
        new = bytes_after(self.tokenizer, self._before, np.array([token]))
        shown, self._held, _ = self._stops.feed(self._held, new)
        self._before = token
        new, self._of_prompt = shown[self._of_prompt :], max(0, self._of_prompt - len(shown))
        return self._utf8.decode(new)

    def end(self) -> str:
        """What was held back. After a stop string that is nothing; otherwise it did not become one."""
        return self._utf8.decode(self._held[self._of_prompt :], final=True)
