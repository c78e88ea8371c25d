"""Generation: from prompts, one token after the other.

    out = generate(model, idx, max_new_tokens=100, temperature=0.8, top_k=50, seed=0)
    for ids in stream(model, idx, max_new_tokens=100, temperature=0.8, top_k=50, seed=0):
        ...                                   # ids (R,): the next token of each row, as soon as it is chosen

The options are the fields of `GenerationConfig`, under transformers' names. Each step asks the model for the logits of
the next token (`row_decoder`), lets processors change them (`processors`), chooses (`token_sampler`) and sees which end
(`stopping`); rows that have ended leave the batch and cost nothing. Several beams are searched by `beam`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .beam import beam_search
from .options import WHERE, GenerationConfig
from .request import Generated, Request, prepare
from .row_decoder import RowDecoder
from .stopping import DEAD_END
from .token_sampler import SampledTokens, TokenSampler, Uniforms

if TYPE_CHECKING:
    from ..gpt import GPT


def generate(
    model: GPT,
    idx: Any,
    max_new_tokens: int | None = None,
    *,
    attention_mask: Any = None,
    config: GenerationConfig | None = None,
    logits_processor: Any = (),
    tokenizer: Any = None,
    return_details: bool = False,
    **options: Any,
) -> Any:
    """The prompts and what follows, (B * num_return_sequences, T + N) int64; the samples of a prompt are neighbours.

    idx: (B, T) integers, or a list of B prompts of any lengths, each at least one token; with `attention_mask` (B, T)
    of 0 and 1 the prompts are the tokens at the ones, and the padding may be left or right (it moves to the left).
    Without a mask pad_token_id on the left of a table is padding, if it is given and is no eos token, as in
    transformers.
    config: where the options start from, a `GenerationConfig` or transformers' settings as a dict; None: the model's
    own `generation_config`, else the defaults. options: fields of `GenerationConfig`, which change it.
    logits_processor: functions (rows, logits) -> logits as in `processors`.
    tokenizer: for stop strings; ids beyond its vocabulary are never chosen. return_details: a `Generated` instead.

    N is the most tokens that any row got: fewer than were allowed if all rows end before. A row for which every token
    is ruled out ends there, and the others go on; only where that is so for all rows from the start is it an error.
    Behind the end of a row stands pad_token_id, the first eos token, or 0. The model works without its
    dropout and without a graph, and is left in the mode it was in. All is checked before the first token: raises
    UsageError, ShapeError, DtypeError, RangeError.
    """
    options["max_new_tokens"] = max_new_tokens
    request = prepare(model, idx, attention_mask, config, logits_processor, tokenizer, options)
    if request.config.num_beams > 1:
        generated = beam_search(request)
    else:
        record = _Record(len(request.prompts.rows) * request.copies, return_details)
        tokens = list(_steps(request, record))
        generated = record.result(request, tokens)
    return generated if return_details else generated.sequences


def stream(
    model: GPT,
    idx: Any,
    max_new_tokens: int | None = None,
    *,
    attention_mask: Any = None,
    config: GenerationConfig | None = None,
    logits_processor: Any = (),
    tokenizer: Any = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Yield the next token of each row, (R,) int64, until all rows have ended; those that have get the padding id.

    The arguments, and what is raised before the first token, are those of `generate`. Beams can't be streamed.
    """
    options["max_new_tokens"] = max_new_tokens
    return stream_request(prepare(model, idx, attention_mask, config, logits_processor, tokenizer, options))


def stream_request(request: Request) -> Iterator[np.ndarray]:
    """`stream`, of a call that has been checked."""
    if request.config.num_beams > 1:
        raise UsageError(
            f"{WHERE}: beam search knows its tokens only at the end, so it can't be streamed: use generate"
        )
    return _steps(request, _Record(0, False))


# The loop -----------------------------------------------------------------------------------------


@dataclass
class _Record:
    """What happened to each of `rows` rows."""

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
    """Yield the next token of each row, (R,), and record what ends rows."""
    R = len(request.prompts.rows) * request.copies
    limits = np.repeat(request.limits, request.copies)  # (R,)
    reasons = [reason for reason in request.limit_reasons for _ in range(request.copies)]
    if R == 0:  # nothing to ask the model
        yield from [np.zeros(0, dtype=np.int64)] * int(request.config.max_new_tokens or 0)
        return
    for row in np.flatnonzero(limits == 0).tolist():
        record.reasons[row], record.lengths[row] = reasons[row], 0
    active = np.flatnonzero(limits)  # (A,) the rows that go on
    if not len(active):
        return
    token_sampler = TokenSampler(request.config, request.processors, Uniforms(request.seed, R), record.details)
    row_decoder, logits = _start(request)
    held = [request.stopping.begin(ids) for ids in row_decoder.rows()]
    for step in range(int(limits.max())):
        choice = token_sampler(row_decoder.rows(), logits, active)
        goes_on, actives, ids = [], active.tolist(), choice.ids
        dead = _dead_ends(choice, step, everything=len(active) == R)
        for place, token in enumerate(ids.tolist()):
            row = actives[place]
            if place in dead:
                record.reasons[row], record.lengths[row], ids[place] = DEAD_END, step, request.padding
                continue
            held[place], reason = request.stopping.feed(held[place], token)
            if reason is None and step + 1 == limits[row]:
                reason = reasons[row]
            if reason is None:
                goes_on.append(place)
            else:
                record.reasons[row], record.lengths[row] = reason, step + 1
        if len(dead) == len(active):
            return
        if record.details:
            record.log_probs.append(_spread(choice.log_probs, active, R, 0.0))
            record.processed.append(_spread(choice.processed_log_probs, active, R, 0.0))
        yield _spread(ids, active, R, request.padding)
        if not goes_on:
            return
        if len(goes_on) < len(active):
            row_decoder.select(np.array(goes_on))
            active, ids, held = active[goes_on], ids[goes_on], [held[place] for place in goes_on]
        logits = row_decoder.step(ids)


def _dead_ends(choice: SampledTokens, step: int, everything: bool) -> Collection[int]:
    """The places of the rows for which every token is ruled out. everything: all rows of the request are asked."""
    if choice.alive is None:
        return ()
    dead = np.flatnonzero(~choice.alive).tolist()
    if step == 0 and everything and len(dead) == len(choice.ids):
        raise UsageError(f"{WHERE}: the options leave no token to choose: all ids are ruled out from the start")
    return set(dead)


def _start(request: Request) -> tuple[RowDecoder, np.ndarray]:
    """A RowDecoder of the rows that can grow, and the first logits. Each prompt is read once, whatever its copies."""
    prompts = [ids for ids, limit in zip(request.prompts.rows, request.limits, strict=True) if limit]
    row_decoder = RowDecoder(request.model, prompts, int(request.limits.max()))
    logits = row_decoder.start()
    if request.copies > 1:
        rows = np.repeat(np.arange(len(prompts)), request.copies)
        row_decoder.select(rows)
        logits = logits[rows]
    return row_decoder, logits


def _spread(values: Any, active: np.ndarray, rows: int, fill: float) -> np.ndarray:
    """values (A,) of the active rows -> (rows,), `fill` elsewhere."""
    result = np.full(rows, fill, dtype=values.dtype)
    result[active] = values
    return result
