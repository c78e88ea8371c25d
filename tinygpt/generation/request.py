"""The arguments of a `generate` call, checked before the first token.

Both decoding loops (`sampler` and `beam`) take a `Request` and return a `Generated`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import random
from ..errors import DtypeError, UsageError
from ..typing import Ids
from .config_file import config_from_dict
from .options import DEFAULT_NEW_TOKENS, WHERE, GenerationConfig, check_vocabulary
from .processors import Processor, history_processors, user_processors
from .prompt_cache import PromptCache, check_prompt_cache
from .prompts import Prompts, read_prompts
from .stopping import BLOCK, LENGTH, Stopping

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..language_model import LanguageModel
    from ..tokenizers import Tokenizer


@dataclass
class Request:
    """The checked arguments of a `generate` call."""

    model: GPT
    prompts: Prompts
    config: GenerationConfig
    processors: list[Processor]
    stopping: Stopping
    limits: np.ndarray  # (B,) the maximum number of new tokens for each prompt
    limit_reasons: list[str]  # (B) the finish reason of a row that reaches its limit
    padding: int
    seed: int | tuple[int, ...]
    cache: PromptCache | None = None

    @property
    def copies(self) -> int:
        return self.config.num_return_sequences


def prepare(
    model: GPT,
    idx: Ids,
    attention_mask: Ids | None,
    config: GenerationConfig | Mapping[str, Any] | None,
    logits_processor: Processor | Sequence[Processor],
    tokenizer: Tokenizer | None,
    options: dict[str, Any],
    prompt_cache: PromptCache | None = None,
) -> Request:
    """Check the arguments of a call against the model and against each other."""
    if options["max_new_tokens"] is None:
        del options["max_new_tokens"]
    config = resolve_config(model, config, tokenizer, options)
    prompts = read_prompts(
        model, idx, attention_mask, None if config.pad_token_id in config.eos_ids else config.pad_token_id
    )
    check_prompt_cache(prompt_cache, model, prompts, config)
    limits, reasons = _limits(model, config, prompts)
    return Request(
        model=model,
        prompts=prompts,
        config=config,
        processors=history_processors(config) + user_processors(logits_processor),
        stopping=Stopping(config, tokenizer),
        limits=limits,
        limit_reasons=reasons,
        padding=_padding(config, prompts, limits),
        seed=request_seed(config, len(prompts.rows)),
        cache=prompt_cache,
    )


def resolve_config(
    model: LanguageModel,
    config: GenerationConfig | Mapping[str, Any] | None,
    tokenizer: Tokenizer | None,
    options: dict[str, Any],
) -> GenerationConfig:
    """The config of a call: the given config or the model's, plus the options, bounded by model and tokenizer."""
    if config is None:
        config = getattr(model, "generation_config", None) or GenerationConfig()
    if isinstance(config, Mapping):
        config = config_from_dict(config)
    if not isinstance(config, GenerationConfig):
        raise UsageError(f"{WHERE}: config must be a GenerationConfig, not {type(config).__name__}")
    config = config.with_options(options)
    check_tokenizer(tokenizer)
    V = model.config.vocab_size
    real = config.vocab_size if config.vocab_size is not None else getattr(tokenizer, "vocab_size", V)
    if config.vocab_size is None and getattr(tokenizer, "ids_of_texts", real) <= V:
        real = min(real, V)  # a padding token added later has no embedding in the model, and needs none
    if real > V:
        whose = "vocab_size" if config.vocab_size is not None else "the tokenizer"
        raise UsageError(f"{WHERE}: {whose} has {real} ids, but the model only {V}: it belongs to another model")
    check_vocabulary(config, real)
    if config.max_new_tokens is None and config.max_length is None:
        options = {"max_new_tokens": max(DEFAULT_NEW_TOKENS, config.min_new_tokens or 0), "vocab_size": real}
    else:
        options = {"vocab_size": real}
    return config.with_options(options)


def _limits(model: GPT, config: GenerationConfig, prompts: Prompts) -> tuple[np.ndarray, list[str]]:
    """The maximum number of new tokens for each prompt, and the finish reason at that limit."""
    lengths, block = prompts.lengths, model.config.block_size
    if config.max_new_tokens is not None:
        limits = np.full(len(lengths), config.max_new_tokens)
    else:
        assert config.max_length is not None
        limits = config.max_length - lengths
        if (limits <= 0).any():
            raise UsageError(
                f"{WHERE}: a prompt of {lengths.max()} tokens leaves no room for new ones within max_length="
                f"{config.max_length}, which includes the prompt: raise it, or give max_new_tokens"
            )
    least = (config.min_length or 0) - lengths if config.min_new_tokens is None else config.min_new_tokens
    if (least > limits).any():
        raise UsageError(
            f"{WHERE}: min_length or min_new_tokens requires at least {np.max(least)} new tokens, "
            f"but max_length or max_new_tokens allows at most {limits.max()}"
        )
    if config.overflow != "stop":
        return limits, [LENGTH] * len(limits)
    if (lengths > block).any():
        raise UsageError(
            f"{WHERE}: a prompt of {lengths.max()} tokens is longer than this model's block_size of {block}: "
            f"shorten it, or use overflow='slide'"
        )
    room = block - lengths
    return np.minimum(limits, room), [BLOCK if full else LENGTH for full in room < limits]


def _padding(config: GenerationConfig, prompts: Prompts, limits: np.ndarray) -> int:
    """The padding token. The caller must give one only if rows can differ in length."""
    if config.padding is not None:
        return config.padding
    rows = len(limits) * config.num_return_sequences
    if prompts.needs_padding or len(set(limits.tolist())) > 1 or (config.stop_strings is not None and rows > 1):
        raise UsageError(f"{WHERE}: the rows may differ in length: give pad_token_id, the id to pad them with")
    return 0


def check_tokenizer(tokenizer: Any) -> None:
    """Raise DtypeError unless this is None or has the interface of `tinygpt.tokenizers`."""
    if tokenizer is not None and not (hasattr(tokenizer, "token_bytes") and hasattr(tokenizer, "vocab_size")):
        raise DtypeError(f"{WHERE}: tokenizer must be one of tinygpt.tokenizers, not {type(tokenizer).__name__}")


def request_seed(config: GenerationConfig, prompts: int) -> int | tuple[int, ...]:
    """The config's seed, or a new one from the default generator. Raises UsageError for the wrong number of seeds."""
    seed: Any = config.seed
    if isinstance(seed, tuple) and len(seed) != prompts:
        raise UsageError(f"{WHERE}: seed must be one number, or one for each of the {prompts} prompts, not {len(seed)}")
    if config.greedy:
        return 0
    return int(random.default_generator.integers(2**53)) if seed is None else seed
