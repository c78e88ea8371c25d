"""Stream text as it is generated: `stream_text`. What it yields of the tokens is in `text_pieces`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DtypeError, UsageError
from .options import WHERE, GenerationConfig
from .request import check_tokenizer, prepare
from .sampler import stream_request
from .text_pieces import pieces_of

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
    return pieces_of(stream_request(request), tokenizer, ids, request.config, skip_special_tokens)
