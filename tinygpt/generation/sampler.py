"""The sampler: from a prompt, one token after the other.

    for ids in stream(model, idx, max_new_tokens=100, temperature=0.8, top_k=50, seed=0):
        ...                                       # ids (B,): the next token of each row, as soon as it is chosen

Each step asks the model for the logits of the next token, and chooses: the greatest (greedy), or a draw from the
probabilities that temperature, top_k and top_p leave.

The window. A model reads at most block_size tokens. A longer text is cut to its last block_size tokens, and
every step computes the whole window anew: positions are learned, so when the window slides each token gets a new one.

Randomness. Row b of step t uses a number that is a pure function of (seed, t, b). So the same seed gives
the same text, and row b does not depend on how many rows there are. (The logits themselves may differ in the last bits
with the size of the batch, as matrix products round differently; a draw on the edge between two tokens could see it.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends, random
from ..checks import number, whole_number
from ..errors import UsageError
from ..function import no_grad
from .processors import apply_temperature, keep_top_k, keep_top_p, softmax

if TYPE_CHECKING:
    from ..gpt import GPT

# Sampling has streams of its own, far from those that weights and dropout masks of the same seed use.
_FIRST_STREAM = 1 << 48


def stream(
    model: GPT,
    idx: Any,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    do_sample: bool = True,
    seed: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield the next token of each row, (B,) int64, `max_new_tokens` times.

    idx: (B, T) integers, the prompts, T at least 1. temperature: 0 means greedy, as does do_sample=False.
    top_k: draw from the k most likely (and their equals). top_p: draw from the most likely that make up p.
    seed: None takes one from `tinygpt.random.default_generator`.

    The model works without its dropout and without a graph; between two tokens, and afterwards, it is in the mode
    it was in. Raises UsageError, ShapeError, DtypeError, RangeError, all of them before the first token.
    """
    ids = _prompt(model, idx)
    count, temperature, top_k, top_p = check_options(max_new_tokens, temperature, top_k, top_p)
    greedy = temperature == 0 or not do_sample
    if seed is None:
        seed = int(random.default_generator.integers(2**53)) if not greedy else 0
    seed = random.Generator(seed).seed  # refuses what is not a seed

    def steps() -> Iterator[np.ndarray]:
        window = ids
        for step in range(count):
            window = window[:, -model.config.block_size :]
            logits = _next_logits(model, window)
            if greedy:
                chosen = logits.argmax(axis=1)
            else:
                chosen = draw(process(logits, temperature, top_k, top_p), uniforms(seed, step, len(logits)))
            window = np.concatenate([window, chosen[:, None]], axis=1)
            yield chosen

    return steps()


def check_options(
    max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> tuple[int, float, int | None, float | None]:
    """The four as plain numbers. Raises UsageError or DtypeError for one without sense, as `stream` does."""
    where = "generate"
    return (
        whole_number(where, "max_new_tokens", max_new_tokens, at_least=0),
        number(where, "temperature", temperature, at_least=0),
        None if top_k is None else whole_number(where, "top_k", top_k),
        None if top_p is None else number(where, "top_p", top_p, above=0, at_most=1),
    )


def generate(
    model: GPT,
    idx: Any,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    do_sample: bool = True,
    seed: int | None = None,
) -> np.ndarray:
    """The prompts and what follows them, (B, T + max_new_tokens) int64. The options are those of `stream`."""
    tokens = stream(model, idx, max_new_tokens, temperature, top_k, top_p, do_sample, seed)
    return np.concatenate([_prompt(model, idx), *(chosen[:, None] for chosen in tokens)], axis=1)


def process(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The processors that were asked for, in their order. logits (B, V) -> (B, V)."""
    logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits


def draw(logits: np.ndarray, u: np.ndarray) -> np.ndarray:
    """A token for each row by inversion: the first whose cumulative probability exceeds u in [0, 1).

    logits (B, V), u (B,) -> (B,) int64. A token of probability 0 is never drawn: the sum does not rise there.
    """
    cumulative = np.cumsum(softmax(logits), axis=1)  # (B, V)
    target = u * cumulative[:, -1]  # (B,) the last sum may differ from 1 by rounding
    return (cumulative <= target[:, None]).sum(axis=1)


def uniforms(seed: int, step: int, rows: int) -> np.ndarray:
    """(rows,) float64 in [0, 1), 53 random bits each; number b is a pure function of (seed, step, b)."""
    pairs = random.words(seed, _FIRST_STREAM + step, rows, 2).astype(np.uint64)  # (rows, 2)
    bits = (pairs[:, 0] << np.uint64(32)) | pairs[:, 1]
    return (bits >> np.uint64(11)) * 2.0**-53


def _next_logits(model: GPT, window: np.ndarray) -> np.ndarray:
    """The model's scores (B, V) for the token after the window, as float64 in the computer's memory."""
    with no_grad(), _evaluating(model):
        logits = model.next_logits(window).numpy().astype(np.float64)
    if not np.isfinite(logits).all():
        raise UsageError(
            "generate: the model's logits are not finite numbers: its weights hold nan or inf, or overflow"
        )
    return logits


@contextlib.contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def _prompt(model: GPT, idx: Any) -> np.ndarray:
    """The prompt as (B, T) int64, checked up front: all of it, not only the part in the window."""
    return backends.move(model.check_ids(idx, any_length=True), "numpy").astype(np.int64)
