"""Generation, one token at a time.

    out = generate(model, idx, max_new_tokens=100, temperature=0.8, top_k=50, seed=0)
    for ids in stream(model, idx, max_new_tokens=100, temperature=0.8, top_k=50, seed=0):
        ...                                   # ids (R,): the next token of each row, as soon as it is chosen

The options are the fields of `GenerationConfig`, which has transformers' names. Each step computes the logits of the
next token (`row_decoder`), applies the processors (`processors`), chooses a token (`token_sampler`) and checks which
rows end (`stopping`). Rows that have ended leave the batch and cost nothing. With num_beams above 1, `beam` takes over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ..errors import UsageError
from ..language_model import Generated
from ..typing import Ids
from .beam import beam_search
from .options import WHERE, GenerationConfig
from .prompt_cache import PromptCache
from .request import Request, prepare
from .row_decoder import RowDecoder
from .stopping import DEAD_END
from .token_sampler import SampledTokens, TokenSampler, Uniforms

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..tokenizers import Tokenizer
    from .processors import Processor


@overload
def generate(
    model: GPT,
    idx: Ids,
    max_new_tokens: int | None = ...,
    *,
    attention_mask: Ids | None = ...,
    config: GenerationConfig | Mapping[str, Any] | None = ...,
    logits_processor: Processor | Sequence[Processor] = ...,
    tokenizer: Tokenizer | None = ...,
    prompt_cache: PromptCache | None = ...,
    return_details: Literal[False] = ...,
    **options: Any,
) -> np.ndarray: ...


@overload
def generate(
    model: GPT,
    idx: Ids,
    max_new_tokens: int | None = ...,
    *,
    attention_mask: Ids | None = ...,
    config: GenerationConfig | Mapping[str, Any] | None = ...,
    logits_processor: Processor | Sequence[Processor] = ...,
    tokenizer: Tokenizer | None = ...,
    prompt_cache: PromptCache | None = ...,
    return_details: Literal[True],
    **options: Any,
) -> Generated: ...


def generate(
    model: GPT,
    idx: Ids,
    max_new_tokens: int | None = None,
    *,
    attention_mask: Ids | None = None,
    config: GenerationConfig | Mapping[str, Any] | None = None,
    logits_processor: Processor | Sequence[Processor] = (),
    tokenizer: Tokenizer | None = None,
    prompt_cache: PromptCache | None = None,
    return_details: bool = False,
    **options: Any,
) -> np.ndarray | Generated:
    """Continue the prompts: (B * num_return_sequences, T + N) int64, prompts and new tokens, grouped by prompt.

    idx: (B, T) integers, or a list of B prompts of any lengths, each with at least one token. With an `attention_mask`
    (B, T), its ones mark the tokens of the prompts; the padding may be on the left or right (it moves to the left).
    Without a mask, pad_token_id on the left of a table is padding if it is given and is not an eos token, as in
    transformers.
    config: a `GenerationConfig`, or transformers' settings as a dict; None: the model's `generation_config`, or else
    the defaults. options: fields of `GenerationConfig`, which override it.
    logits_processor: functions (rows, logits) -> logits, see `processors`.
    tokenizer: needed for stop strings; ids outside its vocabulary are never chosen.
    prompt_cache: keys and values of the last call's text, for one prompt that begins like it: see `PromptCache`.
    return_details: return a `Generated` instead of the array.

    N is the number of tokens generated for the longest row, less than the limit if all rows end early. A row for which
    every token is ruled out ends there, and the others continue; this is an error only if it happens to all rows at the
    first token. Rows that end early are padded with pad_token_id, or else the first eos token, or else 0. The model
    runs without dropout and without building a graph, and its mode is restored. All arguments are checked before the
    first token: raises UsageError, ShapeError, DtypeError, RangeError.
    """
    options["max_new_tokens"] = max_new_tokens
    request = prepare(model, idx, attention_mask, config, logits_processor, tokenizer, options, prompt_cache)
    if request.config.num_beams > 1:
        generated = beam_search(request)
    else:
        record = _Record(len(request.prompts.rows) * request.copies, return_details)
        tokens = list(_steps(request, record))
        generated = record.result(request, tokens)
    return generated if return_details else generated.sequences


def stream(
    model: GPT,
    idx: Ids,
    max_new_tokens: int | None = None,
    *,
    attention_mask: Ids | None = None,
    config: GenerationConfig | Mapping[str, Any] | None = None,
    logits_processor: Processor | Sequence[Processor] = (),
    tokenizer: Tokenizer | None = None,
    prompt_cache: PromptCache | None = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Yield the next token of each row, (R,) int64, until all rows have ended. Ended rows get the padding token.

    The arguments and errors are those of `generate`; they are checked before the first token. Beam search can't stream.
    """
    options["max_new_tokens"] = max_new_tokens
    request = prepare(model, idx, attention_mask, config, logits_processor, tokenizer, options, prompt_cache)
    return stream_request(request)


def stream_request(request: Request) -> Iterator[np.ndarray]:
    """`stream` for a checked request."""
    if request.config.num_beams > 1:
        raise UsageError(f"{WHERE}: beam search knows its tokens only at the end, so it can't stream: use generate")
    return _steps(request, _Record(0, False))


# The loop -----------------------------------------------------------------------------------------


@dataclass
class _Record:
    """How and when each of `rows` rows ended and, with `details`, the log-probabilities of each step."""

    rows: int
    details: bool
    reasons: dict[int, str] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    log_probs: list[np.ndarray] = field(default_factory=list)
    processed: list[np.ndarray] = field(default_factory=list)

    def result(self, request: Request, tokens: Sequence[np.ndarray]) -> Generated:
        prompts = np.repeat(request.prompts.filled(request.padding), request.copies, axis=0)
        empty = np.zeros((self.rows, 0))
        return Generated(
            sequences=np.concatenate([prompts, *(ids[:, None] for ids in tokens)], axis=1),
            lengths=np.array([self.lengths[row] for row in range(self.rows)], dtype=np.int64),
            finish_reasons=[self.reasons[row] for row in range(self.rows)],
            log_probs=np.stack(self.log_probs, axis=1) if self.log_probs else empty,
            processed_log_probs=np.stack(self.processed, axis=1) if self.processed else empty,
        )


def _steps(request: Request, record: _Record) -> Iterator[np.ndarray]:
    """Yield the next token of each row, (R,), and record how each row ends."""
    R = len(request.prompts.rows) * request.copies
    limits = np.repeat(request.limits, request.copies)  # (R,)
    reasons = [reason for reason in request.limit_reasons for _ in range(request.copies)]
    if R == 0:  # no prompts
        yield from [np.zeros(0, dtype=np.int64)] * int(request.config.max_new_tokens or 0)
        return
    for row in np.flatnonzero(limits == 0).tolist():
        record.reasons[row], record.lengths[row] = reasons[row], 0
    active = np.flatnonzero(limits)  # (A,) the rows that have not ended
    if not len(active):
        return
    token_sampler = TokenSampler(request.config, request.processors, Uniforms(request.seed, R), record.details)
    row_decoder, logits = _start(request)
    held = [request.stopping.begin(ids) for ids in row_decoder.rows()]
    for step in range(int(limits.max())):
        choice = token_sampler(row_decoder.rows(), logits, active)
        unfinished, row_numbers, ids = [], active.tolist(), choice.ids
        dead = _dead_ends(choice, step, all_active=len(active) == R)
        for i, token in enumerate(ids.tolist()):
            row = row_numbers[i]
            if i in dead:
                record.reasons[row], record.lengths[row], ids[i] = DEAD_END, step, request.padding
                continue
            held[i], reason = request.stopping.feed(held[i], token)
            if reason is None and step + 1 == limits[row]:
                reason = reasons[row]
            if reason is None:
                unfinished.append(i)
            else:
                record.reasons[row], record.lengths[row] = reason, step + 1
        if len(dead) == len(active):
            return
        if record.details:
            record.log_probs.append(_spread(choice.log_probs, active, R, 0.0))
            record.processed.append(_spread(choice.processed_log_probs, active, R, 0.0))
        yield _spread(ids, active, R, request.padding)
        if not unfinished:
            return
        if len(unfinished) < len(active):
            row_decoder.select(np.array(unfinished))
            active, ids, held = active[unfinished], ids[unfinished], [held[i] for i in unfinished]
        logits = row_decoder.step(ids, token_sampler.draw(step + 1, active) if row_decoder.on_gpu else None)


def _dead_ends(choice: SampledTokens, step: int, all_active: bool) -> Collection[int]:
    """The indices of the active rows for which every token is ruled out. all_active: no row has ended before."""
    if choice.alive is None:
        return ()
    dead = np.flatnonzero(~choice.alive).tolist()
    if step == 0 and all_active and len(dead) == len(choice.ids):
        raise UsageError(f"{WHERE}: the options rule out every token from the start: relax them")
    return set(dead)


def _start(request: Request) -> tuple[RowDecoder, np.ndarray]:
    """A RowDecoder of the rows with a limit above 0, and the first logits. Each prompt is read only once."""
    prompts = [ids for ids, limit in zip(request.prompts.rows, request.limits, strict=True) if limit]
    row_decoder = RowDecoder(request.model, prompts, int(request.limits.max()), request.cache)
    logits = row_decoder.start()
    if request.copies > 1:
        rows = np.repeat(np.arange(len(prompts)), request.copies)
        row_decoder.select(rows)
        logits = logits[rows]
    return row_decoder, logits


def _spread(values: Any, active: np.ndarray, rows: int, fill: float) -> np.ndarray:
    """Scatter the values (A,) of the active rows into an array (rows,), with `fill` elsewhere."""
    result = np.full(rows, fill, dtype=values.dtype)
    result[active] = values
    return result
