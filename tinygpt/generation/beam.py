"""Beam search: extend the `num_beams` best rows of each prompt in parallel.

Each step scores every continuation of every beam: the beam's log-probability so far plus that of the token, after the
processors. The best K = max(2, 1 + number of eos tokens) * num_beams continuations become candidates, enough for
num_beams of them to continue even if the others end. A candidate that ends (at an eos token, at a stop string or at its
maximum length) becomes a hypothesis if it is among the best num_beams candidates. Its score is its log-probability
divided by length**length_penalty, where the length excludes the prompt. The num_beams best hypotheses are kept, and
the best num_beams unfinished candidates become the next beams.

A beam for which every token is ruled out can't continue. It becomes a hypothesis ("dead_end") only if the search would
otherwise finish with too few of them.

A prompt is done when no beam can still beat the worst of num_beams hypotheses (`_can_improve`), when all candidates
have ended, or, with early_stopping=True, as soon as there are num_beams hypotheses.

With do_sample, the K candidates are drawn without replacement, in proportion to exp(score), and then sorted by score.

These are the rules of transformers' generate, and the output is the same, token for token, with two refinements:
scores are float64, and beams that do not exist yet (each prompt starts with one) are absent instead of having a score
of -1e9, so they can't be chosen when there are few continuations. Source: Wu et al., "Google's Neural Machine
Translation System", 2016, section 7 (length normalisation); Kool, van Hoof, Welling, "Stochastic Beams and Where to
Find Them", 2019 (sampling without replacement).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from ..language_model import Generated
from .options import WHERE
from .processors import Processor, Rows
from .request import Request
from .row_decoder import RowDecoder
from .stopping import DEAD_END, Held
from .token_sampler import Uniforms, check_finite, inverse_cdf, log_softmax, unnormalized_probs
from .truncation import truncations


class Hypothesis(NamedTuple):
    """The new tokens of one row. Its score is the sum of `processed`, normalised by length once the row has ended."""

    score: float
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    processed: tuple[float, ...] = ()
    held: Held = Held()  # the state of the stop-string search
    reason: str | None = None


class Continuations(NamedTuple):
    """The next beams: the index of each one's parent beam, and its new token."""

    parents: list[int]
    tokens: list[int]


@dataclass
class Search:
    """Beam search for one prompt."""

    request: Request
    limit: int
    limit_reason: str
    beams: list[Hypothesis]
    ended: list[Hypothesis]  # best first, at most num_beams
    done: bool = False

    def advance(self, scores: np.ndarray, log_probs: np.ndarray, u: np.ndarray | None) -> Continuations:
        """Take one step. scores (beams, V): processed scores of the tokens; log_probs (beams, V): the model's own."""
        config, width = self.request.config, self.request.config.num_beams
        totals = (scores + np.array([beam.score for beam in self.beams])[:, None]).reshape(-1)
        count = max(2, 1 + len(config.eos_ids)) * width
        chosen = best(totals, count) if u is None else sample_without_replacement(totals, u[:count])
        chosen = chosen[np.argsort(-totals[chosen], kind="stable")]  # only the best num_beams may end
        parents, tokens = np.divmod(chosen, scores.shape[1])
        if not len(chosen):
            return self._dead_end()
        candidates = [
            self._extend(self.beams[b], token, total, log_probs[b, token], scores[b, token])
            for b, token, total in zip(parents.tolist(), tokens.tolist(), totals[chosen].tolist(), strict=True)
        ]
        self._collect([candidate for candidate in candidates[:width] if candidate.reason is not None])
        unfinished = [i for i, candidate in enumerate(candidates) if candidate.reason is None]
        unfinished = sorted(unfinished, key=lambda i: -candidates[i].score)[:width]
        self.beams = [candidates[i] for i in unfinished]
        full = len(self.ended) == width
        self.done = not unfinished or (full and (config.early_stopping is True or not self._can_improve()))
        return Continuations(parents[unfinished].tolist(), tokens[unfinished].tolist())

    def _extend(self, beam: Hypothesis, token: int, score: float, log_prob: float, processed: float) -> Hypothesis:
        held, reason = self.request.stopping.feed(beam.held, token)
        if reason is None and len(beam.tokens) + 1 == self.limit:
            reason = self.limit_reason
        return Hypothesis(
            score, (*beam.tokens, token), (*beam.log_probs, log_prob), (*beam.processed, processed), held, reason
        )

    def _dead_end(self) -> Continuations:
        """No beam can continue. If there are too few hypotheses, the non-empty beams become hypotheses too."""
        self.done = True
        if len(self.ended) < self.request.copies:
            self._collect([beam._replace(reason=DEAD_END) for beam in self.beams if beam.tokens])
        return Continuations([], [])

    def _collect(self, ended: list[Hypothesis]) -> None:
        """Keep the best hypotheses; on ties, the older one."""
        penalty = self.request.config.length_penalty
        new = [row._replace(score=row.score / len(row.tokens) ** penalty) for row in ended]
        self.ended = sorted(self.ended + new, key=lambda row: -row.score)[: self.request.config.num_beams]

    def _can_improve(self) -> bool:
        """Whether the best beam could still beat the worst hypothesis.

        With early_stopping=False the beam's score is normalised by its current length, a heuristic if length_penalty is
        above 0. With "never" it is then normalised by the maximum length, an upper bound, so nothing better is missed.
        """
        config = self.request.config
        longest = config.early_stopping == "never" and config.length_penalty > 0
        length = self.limit if longest else len(self.beams[0].tokens)
        return self.beams[0].score / length**config.length_penalty > self.ended[-1].score


def best(totals: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest of `totals` (n,), largest first, ties by lower index; never a -inf."""
    count = min(count, len(totals))
    least = np.partition(totals, -count)[-count]
    among = np.flatnonzero((totals >= least) & (totals > -np.inf))
    return among[np.argsort(-totals[among], kind="stable")[:count]]


def sample_without_replacement(totals: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Indices of `totals` (n,), drawn one at a time in proportion to exp(totals), each at most once.

    u: a number in [0, 1) for each draw. Returns fewer indices if fewer scores are above -inf.
    """
    among = np.flatnonzero(totals > -np.inf)
    if not len(among):
        return among
    left = totals[among]
    weights, chosen = unnormalized_probs(left), []
    for value in u[: len(among)].tolist():
        if weights.max() < 1e-200:  # those drawn so far had nearly all the weight: rescale the rest
            weights = unnormalized_probs(left)
        index, _ = inverse_cdf(weights, value)
        chosen.append(index)
        weights[index], left[index] = 0.0, -np.inf
    return among[np.array(chosen, dtype=np.int64)]


def beam_search(request: Request) -> Generated:
    """The num_return_sequences best rows of each prompt."""
    searches = [
        Search(request, limit, reason, [Hypothesis(0.0, held=request.stopping.begin(ids))], [])
        for ids, limit, reason in zip(request.prompts.rows, request.limits.tolist(), request.limit_reasons, strict=True)
    ]
    for search in searches:
        if search.limit == 0:
            search.ended, search.done = [search.beams[0]._replace(reason=search.limit_reason)] * request.copies, True
    if not all(search.done for search in searches):
        _run(request, [search for search in searches if not search.done], searches)
    for search in searches:
        if len(search.ended) < request.copies:
            raise UsageError(
                f"{WHERE}: beam search found only {len(search.ended)} distinct rows for "
                f"num_return_sequences={request.copies}: the options rule out all others"
            )
    return _result(request, [row for search in searches for row in search.ended[: request.copies]])


def _run(request: Request, active: list[Search], searches: list[Search]) -> None:
    """Advance all searches together until each is done. One RowDecoder holds all their beams as rows."""
    config = request.config
    running = [b for b, search in enumerate(searches) if not search.done]
    row_decoder = RowDecoder(request.model, [request.prompts.rows[b] for b in running], int(request.limits.max()))
    logits = row_decoder.start()
    processors: list[Processor] = [*request.processors, *truncations(config)]
    columns = max(2, 1 + len(config.eos_ids)) * config.num_beams
    numbers = None if config.greedy else Uniforms(request.seed, len(searches), columns)
    while True:
        log_probs, scores = _score(row_decoder.rows(), logits, config.vocab_size, processors)
        rows, ids, first = list[int](), list[int](), 0
        u = None if numbers is None else numbers(row_decoder.rows().new_tokens)
        for b in running:
            search = searches[b]
            own = slice(first, first + len(search.beams))
            first = own.stop
            step = search.advance(scores[own], log_probs[own], None if u is None else u[b])
            if not search.done:
                rows += [own.start + parent for parent in step.parents]
                ids += step.tokens
        running = [b for b in running if not searches[b].done]
        if not running:
            return
        row_decoder.select(np.array(rows))
        logits = row_decoder.step(np.array(ids))


def _score(
    rows: Rows, logits: np.ndarray, vocab_size: int | None, processors: Sequence[Processor]
) -> tuple[np.ndarray, np.ndarray]:
    """The model's log-probabilities (R, V), before and after the processors."""
    check_finite(logits)
    log_probs = scores = log_softmax(logits)[:, :vocab_size]
    for processor in processors:
        scores = processor(rows, scores)
    return log_probs, scores


def _result(request: Request, rows: list[Hypothesis]) -> Generated:
    """Pack the rows of all prompts into arrays."""
    lengths = np.array([len(row.tokens) for row in rows], dtype=np.int64)
    R, N = len(rows), int(lengths.max(initial=0))
    tokens = np.full((R, N), request.padding, dtype=np.int64)
    log_probs, processed = np.zeros((R, N)), np.zeros((R, N))
    for r, row in enumerate(rows):
        tokens[r, : lengths[r]] = row.tokens
        log_probs[r, : lengths[r]], processed[r, : lengths[r]] = row.log_probs, row.processed
    prompts = np.repeat(request.prompts.filled(request.padding), request.copies, axis=0)
    return Generated(
        sequences=np.concatenate([prompts, tokens], axis=1),
        lengths=lengths,
        finish_reasons=[str(row.reason) for row in rows],
        log_probs=log_probs,
        processed_log_probs=processed,
        scores=np.array([row.score for row in rows]),
    )
