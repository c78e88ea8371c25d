"""Stream text as it is generated: only complete characters, and never any part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
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
    request = prepare(model, ids[None], mask, config, logits_processor, tokenizer, options)
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
    hidden = {*config.eos_ids, *getattr(tokenizer, "special_ids", ())} if skip_special_tokens else set()
    stops, utf8 = StopStrings(config.stops), codecs.getincrementaldecoder("utf-8")(errors="replace")
    held, before = stops.begin(tokenizer.token_bytes(prompt)), int(prompt[-1])
    of_prompt = len(held)  # held-back bytes of the prompt, which are not part of the output
    for ids in tokens:
        if int(ids[0]) in hidden:
            continue
        shown, held, _ = stops.feed(held, bytes_after(tokenizer, before, ids))
        before = int(ids[0])
        new, of_prompt = shown[of_prompt:], max(0, of_prompt - len(shown))
        if text := utf8.decode(new):
            yield text
    # After a stop string nothing is held back. Otherwise the bytes held back did not become one.
    if text := utf8.decode(held[of_prompt:], final=True):
        yield text
