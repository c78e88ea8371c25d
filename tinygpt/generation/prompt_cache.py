"""PromptCache: keep what the model has read from one call to the next, as for the turns of a dialogue.

    cache = PromptCache(model)
    for message in ...:
        ids = ...                                               # the whole dialogue so far, and the message
        for text in stream_text(model, tokenizer, ids, prompt_cache=cache): ...
        cache.tokens_read                                       # how many of these ids were not known yet

The keys and values of a token depend only on the tokens before it, so those of the longest common beginning of the last
text (prompt and answer) and the new prompt are still valid. Nobody needs to say what changed: a dialogue that goes on
shares all of it, one whose last turn was taken back shares less, and one whose oldest turn is gone shares what comes
before that turn, since with learned positions every token after it has moved. The next tokens are the same as without a
cache, up to rounding.

Memory: 2 n_layer n_embd block_size numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..typing import Array
from .options import WHERE, GenerationConfig
from .stepper import decoder_for

if TYPE_CHECKING:
    from ..gpt import GPT
    from .prompts import Prompts
    from .token_sampler import Draw


class PromptCache:
    """The last text that `model` read or wrote, with its keys and values: a `Decoder` of one row, for `RowDecoder`.

    tokens_read: how many tokens of the last prompt were computed; tokens_kept: how many were known. After the model's
    weights have changed, call `clear`.
    """

    def __init__(self, model: GPT) -> None:
        self.model, self.capacity = model, model.config.block_size
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._decoder = decoder_for(self.model)
        self._ids = np.zeros(self.capacity, np.int64)
        self.tokens_read = self.tokens_kept = 0

    @property
    def ids(self) -> np.ndarray:
        """The tokens whose keys and values are there, (T,)."""
        # The decoder counts a token once it has been computed, so this is right after an interrupt as well.
        return self._ids[: int(self._decoder.lengths.sum())]

    def prefill(self, prompts: Sequence[np.ndarray]) -> Array:
        """[prompt (T,)], 1 <= T <= block_size -> logits (1, V) of the token after it."""
        (prompt,) = prompts
        # The logits come from the last token, so that one is always computed.
        kept = min(common_length(self.ids, prompt), len(prompt) - 1)
        self.tokens_kept, self.tokens_read = kept, len(prompt) - kept
        if len(self._decoder.lengths):
            self._decoder.truncate([kept])
        self._ids[: len(prompt)] = prompt
        if not kept:
            return self._decoder.prefill([prompt])
        new = prompt[kept:]
        return self._decoder.step(new) if len(new) == 1 else self._decoder.append(0, new)

    def step(self, ids: np.ndarray, draw: Draw | None = None) -> Array:
        """Append ids (1,) -> logits (1, V), or what `draw` makes of them: see `Decoder.step`."""
        self._ids[len(self.ids)] = ids[0]
        return self._decoder.step(ids, draw)


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """The number of tokens at the beginning of a (M,) and b (N,) that are equal."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


def check_prompt_cache(cache: Any, model: GPT, prompts: Prompts, config: GenerationConfig) -> None:
    """Raise UsageError unless `cache` is None or can serve this call."""
    if cache is None:
        return
    if not isinstance(cache, PromptCache):
        raise UsageError(f"{WHERE}: prompt_cache must be a PromptCache, not {type(cache).__name__}")
    if cache.model is not model:
        raise UsageError(f"{WHERE}: the prompt_cache belongs to another model: make one with PromptCache(model)")
    if len(prompts.rows) != 1 or config.num_return_sequences != 1 or config.num_beams != 1:
        raise UsageError(f"{WHERE}: prompt_cache keeps one text: give one prompt, one sequence and no beams")
