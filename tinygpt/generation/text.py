"""Text as it is made: complete characters, and never a stop string or a part of one."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DtypeError, UsageError
from .options import WHERE, GenerationConfig
from .request import prepare
from .sampler import stream_request
from .stopping import StopStrings, check_tokenizer

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..tokenizers import Tokenizer


def stream_text(
    model: GPT,
    tokenizer: Any,
    prompt: Any,
    max_new_tokens: int | None = None,
    *,
    config: GenerationConfig | None = None,
    logits_processor: Any = (),
    skip_special_tokens: bool = True,
    **options: Any,
) -> Iterator[str]:
    """Yield what the model makes of `prompt`, a text or its ids (T,), without it, piece by piece as it is made.

    A character whose bytes are not all there yet is held back, and so is what could be the beginning of a stop
    string; at a stop string the text ends before it. skip_special_tokens: eos and the tokenizer's marks are not shown.
    The other arguments, and what is raised before the first token, are those of `generate`.
    """
    check_tokenizer(tokenizer)
    if tokenizer is None or not isinstance(prompt, (str, list, np.ndarray)):
        raise DtypeError(f"{WHERE}: stream_text needs a tokenizer, and a prompt that is a text or its ids (T,)")
    ids = np.asarray(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    if ids.size == 0:
        raise UsageError(f"{WHERE}: the prompt is empty: give at least one character to go on from")
    options["max_new_tokens"] = max_new_tokens
    whole = np.ones((1, len(ids)))  # one text has no padding, whatever pad_token_id is
    request = prepare(model, ids[None], whole, config, logits_processor, tokenizer, options)
    if request.copies != 1:
        raise UsageError(f"{WHERE}: stream_text makes one text: num_return_sequences can't be above 1")
    return _pieces(stream_request(request), tokenizer, tokenizer.token_bytes(ids), request.config, skip_special_tokens)


def text_of(new: np.ndarray, tokenizer: Tokenizer, prompt: np.ndarray, config: GenerationConfig) -> str:
    """What `stream_text` would have shown, of tokens that are all there: `new` (N,) behind the `prompt` (T,)."""
    before = tokenizer.token_bytes(prompt)
    return "".join(_pieces(iter(new[:, None]), tokenizer, before, config, skip_special_tokens=True))


def _pieces(
    tokens: Iterator[np.ndarray],
    tokenizer: Any,
    prompt: bytes,
    config: GenerationConfig,
    skip_special_tokens: bool,
) -> Iterator[str]:
    """The text of tokens (1,) behind the prompt, up to a stop string, as soon as it is certain."""
    unseen = {*config.eos_ids, *getattr(tokenizer, "special_ids", ())} if skip_special_tokens else set()
    stops, utf8 = StopStrings(config.stops), codecs.getincrementaldecoder("utf-8")(errors="replace")
    held = stops.begin(prompt)
    of_prompt = len(held)  # these bytes are no part of the answer
    for ids in tokens:
        if int(ids[0]) in unseen:
            continue
        shown, held, _ = stops.feed(held, tokenizer.token_bytes(ids))
        own, of_prompt = shown[of_prompt:], max(0, of_prompt - len(shown))
        if text := utf8.decode(own):
            yield text
    # After a stop string nothing is held back; at another end what could have become one did not.
    if text := utf8.decode(held[of_prompt:], final=True):
        yield text
