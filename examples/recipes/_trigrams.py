"""A language model of counted trigrams, the baseline for a text's likelihood: it knows two tokens of the past."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

ORDER = 3


class Trigrams:
    """Counts of tokens after the two, the one and the none before them, interpolated after Witten and Bell (1991): a
    context that was followed by d different tokens in n places gives the shorter context the weight d / (n + d)."""

    def __init__(self, texts: Iterable[Sequence[int]], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.counts: dict[tuple[int, ...], dict[int, int]] = {}
        self.totals: dict[tuple[int, ...], int] = {}
        for text in texts:
            for i in range(len(text)):
                for context in self._contexts(text[:i]):
                    found = self.counts.setdefault(context, {})
                    found[text[i]] = found.get(text[i], 0) + 1
                    self.totals[context] = self.totals.get(context, 0) + 1

    def probability(self, past: Sequence[int], token: int) -> float:
        """Of the token after the past. Those of all tokens sum to 1."""
        found = 1 / self.vocab_size
        for context in self._contexts(past):
            if (counts := self.counts.get(context)) is not None:
                found = (counts.get(token, 0) + len(counts) * found) / (self.totals[context] + len(counts))
        return found

    def loss(self, text: Sequence[int], learned: Sequence[bool]) -> float:
        """The negative log-likelihood, in nats, of the tokens that are marked, the first token left out."""
        return -sum(math.log(self.probability(text[:i], text[i])) for i in range(1, len(text)) if learned[i])

    def answer(self, prompt: Sequence[int], end: Iterable[int], most: int) -> list[int]:
        """The most probable token each time among those that followed the longest context, up to one of `end`."""
        text, stops = list(prompt), set(end)
        for _ in range(most):
            known = next(self.counts[c] for c in reversed(self._contexts(text)) if c in self.counts)
            token = max(known, key=lambda token: self.probability(text, token))
            if token in stops:
                break
            text.append(token)
        return text[len(prompt) :]

    def _contexts(self, past: Sequence[int]) -> list[tuple[int, ...]]:
        """The last none, one and two tokens, as far as there are any."""
        return [tuple(past[len(past) - n :]) for n in range(min(ORDER, len(past) + 1))]
