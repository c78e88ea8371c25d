"""/metrics: what the server has done so far, in Prometheus's text format (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .engine import Engine
from .statistics import BOUNDS, Histogram

_PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


class Requests:
    """Counts answers by path and status. Unknown paths count as one, or anybody could fill the memory with them."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()

    def count(self, path: str, status: int) -> None:
        self.counts[path if path in _PATHS else "other", status] += 1


def exposition(engine: Engine, requests: Requests) -> str:
    """The page."""
    return "".join(f"{line}\n" for line in _lines(engine, requests))


def _lines(engine: Engine, requests: Requests) -> Iterator[str]:
    found = engine.statistics
    yield from _header("requests_total", "counter", "Answers by path and status.")
    for (path, status), count in sorted(requests.counts.items()):
        yield f'tinygpt_requests_total{{path="{path}",status="{status}"}} {count}'
    for name, kind, words, value in (
        ("prompt_tokens_total", "counter", "Tokens of the prompts accepted.", found.prompt_tokens),
        ("prompt_tokens_known_total", "counter", "Of these, tokens not read again.", found.known_tokens),
        ("prefix_cache_bytes", "gauge", "Keys and values of prompts' beginnings.", engine.prefixes.bytes),
        ("generated_tokens_total", "counter", "Tokens written.", found.new_tokens),
        ("texts_total", "counter", "Texts finished.", found.texts),
        ("steps_total", "counter", "Steps of the model, each for all running texts.", found.steps),
        ("texts_running", "gauge", "Texts being written.", engine.running),
        ("texts_waiting", "gauge", "Texts waiting for a place.", engine.waiting),
    ):
        yield from _header(name, kind, words)
        yield f"tinygpt_{name} {value}"
    yield from _histogram("time_to_first_token_seconds", "From the request to its first token.", found.first_token)
    yield from _histogram("time_between_tokens_seconds", "Between two tokens of a text.", found.between_tokens)
    yield from _histogram("text_seconds", "From the request to the end of its text.", found.whole_text)


def _header(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP tinygpt_{name} {words}"
    yield f"# TYPE tinygpt_{name} {kind}"


def _histogram(name: str, words: str, histogram: Histogram) -> Iterator[str]:
    yield from _header(name, "histogram", words)
    total = 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), tuple(histogram.counts), strict=True):
        total += count
        yield f'tinygpt_{name}_bucket{{le="{bound}"}} {total}'
    yield f"tinygpt_{name}_sum {histogram.total}"
    yield f"tinygpt_{name}_count {total}"
