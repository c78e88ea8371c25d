"""A text that the engine is writing: what chooses its next token, and what ends it.

Everything that a text depends on is in its `Request` (model, prompt, options, seed) and its number among the
samples of that prompt. So sample i of n is row i of `model.generate(prompt, num_return_sequences=n, seed=seed)`,
whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from ..generation.processors import Rows
from ..generation.request import Request
from ..generation.stopping import DEAD_END
from ..generation.token_sampler import TokenSampler, Uniforms, log_softmax


class Token(NamedTuple):
    """A new token of a text, or its end without one.

    id: None for a text that ends because every token is ruled out. reason: why the text ends here, or None.
    log_prob and top, (id, log-probability) of the most likely tokens: under the model, before all options; None unless
    they were asked for.
    """

    id: int | None
    reason: str | None = None
    log_prob: float | None = None
    top: tuple[tuple[int, float], ...] | None = None


@dataclass(frozen=True)
class Wanted:
    """A prompt, and how many samples of it: what `Engine.submit` takes.

    request: from `tinygpt.generation.request.prepare`, for a single prompt. top: the number of most likely tokens to
    report with each token; None: no log-probabilities.
    """

    request: Request
    samples: int = 1
    top: int | None = None

    def __post_init__(self) -> None:
        config, prompts = self.request.config, self.request.prompts
        if len(prompts.rows) != 1 or config.num_return_sequences != 1 or config.num_beams != 1:
            raise UsageError("Engine: a request must have one prompt, num_return_sequences=1 and num_beams=1")
        block = self.request.model.config.block_size
        if len(prompts.rows[0]) + self.limit > block:
            raise UsageError(
                f"Engine: a prompt of {len(prompts.rows[0])} tokens and {self.limit} new ones don't fit into the "
                f"model's block_size of {block}: shorten one of them, or use overflow='stop'"
            )

    @property
    def prompt(self) -> np.ndarray:
        """Its ids, (T,)."""
        prompt: np.ndarray = self.request.prompts.rows[0]
        return prompt

    @property
    def limit(self) -> int:
        """The maximum number of new tokens."""
        return int(self.request.limits[0])

    def each(self) -> list[Sample]:
        return [Sample(self, sample) for sample in range(self.samples)]


class Sample:
    """One sample of a prompt."""

    def __init__(self, wanted: Wanted, sample: int) -> None:
        request = wanted.request
        self.wanted, self.sample, self.new_tokens = wanted, np.array([sample]), 0
        prompt = wanted.prompt
        self._ids = np.zeros(len(prompt) + wanted.limit, np.int64)
        self._ids[: len(prompt)] = prompt
        assert isinstance(request.seed, int)
        self._sampler = TokenSampler(request.config, request.processors, Uniforms(request.seed, wanted.samples))
        self._stopping, self._held = request.stopping, request.stopping.begin(prompt)

    @property
    def ids(self) -> np.ndarray:
        """The prompt and the new tokens so far."""
        return self._ids[: len(self.wanted.prompt) + self.new_tokens]

    @property
    def last(self) -> int:
        return int(self.ids[-1])

    def choose(self, logits: np.ndarray) -> Token:
        """Append the next token, given its logits (1, V). Raises UsageError if they are not finite."""
        chosen = self._sampler(Rows([self.ids], self.new_tokens), logits, self.sample)
        if chosen.alive is not None and not chosen.alive[0]:
            return Token(None, DEAD_END)
        token = int(chosen.ids[0])
        self._ids[len(self.ids)] = token
        self.new_tokens += 1
        self._held, reason = self._stopping.feed(self._held, token)
        if reason is None and self.new_tokens == self.wanted.limit:
            reason = self.wanted.request.limit_reasons[0]
        if self.wanted.top is None:
            return Token(token, reason)
        return Token(token, reason, *self._likelihood(logits, token, self.wanted.top))

    def _likelihood(self, logits: np.ndarray, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """The log-probability of `token`, and the `top` most likely tokens that could be chosen."""
        log_probs = log_softmax(logits)[0]
        real = log_probs[: self.wanted.request.config.vocab_size]
        count = min(top, len(real))
        best = np.argpartition(real, -count)[-count:] if count else np.zeros(0, np.int64)
        best = best[np.argsort(-real[best], kind="stable")]
        return float(log_probs[token]), tuple((int(i), float(log_probs[i])) for i in best)
