"""Stream text as it is generated: only complete characters, and never any part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DtypeError, UsageError
from .options import WHERE, GenerationConfig
from .request import prepare
from .sampler import stream_request
from .stopping import StopStrings, bytes_after, check_tokenizer

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..tokenizers import Tokenizer
    from .processors import Processor
    from .prompt_cache import PromptCache


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | list[int] | np.ndarray,
    max_new_tokens: int | None = None,
    *,
    config: GenerationConfig | Mapping[str, Any] | None = None,
    logits_processor: Processor | Sequence[Processor] = (),
    prompt_cache: PromptCache | None = None,
    skip_special_tokens: bool = True,
    **options: Any,
) -> Iterator[str]:
    """Yield the continuation of `prompt`, a string or its ids (T,), in pieces, as it is generated.

    Incomplete characters are held back, and so is any text that could be the start of a stop string. The text ends just
    before a stop string. skip_special_tokens: leave out eos tokens and the tokenizer's special tokens.
    The other arguments and errors are those of `generate`; all are checked before the first token.
    """
    check_tokenizer(tokenizer)
    if tokenizer is None or not isinstance(prompt, (str, list, np.ndarray)):
        raise DtypeError(f"{WHERE}: stream_text needs a tokenizer, and a prompt that is a string or its ids (T,)")
    ids = np.asarray(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    if ids.size == 0:
        raise UsageError(f"{WHERE}: the prompt is empty: give at least one character")
    options["max_new_tokens"] = max_new_tokens
    mask = np.ones((1, len(ids)))  # a single prompt has no padding, whatever pad_token_id is
    request = prepare(model, ids[None], mask, config, logits_processor, tokenizer, options, prompt_cache)
    if request.copies != 1:
        raise UsageError(f"{WHERE}: stream_text yields one text: num_return_sequences can't be above 1")
    return _pieces(stream_request(request), tokenizer, ids, request.config, skip_special_tokens)


def text_of(new: np.ndarray, tokenizer: Tokenizer, prompt: np.ndarray, config: GenerationConfig) -> str:
    """The text that `stream_text` would yield for the generated tokens `new` (N,) after `prompt` (T,)."""
    return "".join(_pieces(iter(new[:, None]), tokenizer, prompt, config, skip_special_tokens=True))


def _pieces(
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
