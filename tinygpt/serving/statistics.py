"""What the engine counts, for `/metrics`: tokens, texts, and the times that clients wait for them."""

from __future__ import annotations

from bisect import bisect_left

# Upper bounds in seconds, Prometheus's way: each bucket is counted with all below it.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHARE = 0.1  # of a new text in the running mean


class Histogram:
    """How many times were at most as long as each of BOUNDS; the last count is of those beyond."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Statistics:
    """Written by the engine's thread, prompt_tokens by the submitting threads, under its lock; read by any."""

    def __init__(self) -> None:
        self.prompt_tokens = self.known_tokens = self.new_tokens = self.texts = self.steps = 0
        self.first_token, self.between_tokens, self.whole_text = Histogram(), Histogram(), Histogram()
        self.usual_seconds = 1.0  # that a text takes, from its request to its end

    def token(self, seconds: float, first: bool) -> None:
        """A token, `seconds` after the one before it, or after the request."""
        self.new_tokens += 1
        (self.first_token if first else self.between_tokens).add(seconds)

    def finished(self, seconds: float) -> None:
        self.texts += 1
        self.whole_text.add(seconds)
        self.usual_seconds += _SHARE * (seconds - self.usual_seconds)
