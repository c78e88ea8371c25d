"""Choose the next token of each row from the model's logits, greedily or by sampling.

Randomness. The random number of row b at step t is a pure function of (seed, t, b), computed by Philox
(`tinygpt.random`). So a seed determines the text, and a row does not depend on the number of rows. With one seed per
prompt, its samples use (that seed, t, 0), (that seed, t, 1), ..., as if the prompt were alone.

Cost. This should be negligible next to the model's step. Greedy decoding without processors is an argmax over the
model's own array. Only the tokens left after top_k, found by a partition instead of a sort, are converted to float64.
Random numbers are generated for many steps at once.

On a GPU the logits of a step, 200 KB a row for GPT-2, can stay where they are, if only temperature, top_k and top_p
apply: `sample_tokens` draws there, and the host reads the ids. The sampler hands this draw to the decoder
before the step (`Draw`), which makes it a part of the step's CUDA graph. Both draw with the same numbers in double
precision; `tinygpt/ops/sample_tokens.py` says how they may differ. Everything else stays on the host: a processor, such
as the repetition penalty, is a function of the whole text of each row that a user may write, min_p and the like
are rarely used, and log-probabilities (`return_details`) need the logits anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backends, random
from ..errors import UsageError
from ..ops.sample_tokens import UNIT, sample_tokens
from .options import WHERE, GenerationConfig
from .processors import Processor, Rows
from .truncation import Temperature, TopK, TopP, Truncation, truncations, unnormalized_probs

# Sampling uses its own streams, far from those used for weights and dropout masks with the same seed.
_FIRST_STREAM = 1 << 48
_STEPS_AT_ONCE = 64
_BLOCK = 256
ON_DEVICE = (Temperature, TopK, TopP)  # what `sample_tokens` does


class SampledTokens(NamedTuple):
    """(R,) ids and, with `details`, the log-probability of each under the model and under its final distribution.

    alive: (R,) bool, False where every token was ruled out and the id is meaningless; None: all rows are alive.
    """

    ids: np.ndarray
    log_probs: np.ndarray | None
    processed_log_probs: np.ndarray | None
    alive: np.ndarray | None = None


class Draw(NamedTuple):
    """One token for each row of logits on a GPU: the arguments of `sample_tokens`."""

    number: np.ndarray  # (R,) int64, the random numbers: new at each step
    settings: tuple[int | None, float, int, float]  # vocab_size, temperature, top_k, top_p: the same at each

    def __call__(self, logits: Any) -> Any:
        """logits (R, V) -> (R,) int64 on the same GPU, -1 for a row that is not finite."""
        vocab_size, temperature, top_k, top_p = self.settings
        size = len(range(logits.shape[1])[:vocab_size])
        return sample_tokens(logits, backends.move(self.number, "cupy"), size, temperature, top_k, top_p)

    @staticmethod
    def works(logits: Any) -> bool:
        return sample_tokens.fast_body((logits,)) is not None


class TokenSampler:
    """Logits (R, V) -> the next token of each row, chosen greedily or sampled."""

    def __init__(
        self, config: GenerationConfig, processors: Sequence[Processor], numbers: Uniforms | None, details: bool = False
    ) -> None:
        self.config, self.processors, self.numbers, self.details = config, processors, numbers, details
        self.truncations = truncations(config)
        # Dividing by a temperature keeps the order, so top_k can come first, on the float32 logits.
        self.truncations.sort(key=lambda truncation: not isinstance(truncation, TopK))

    @property
    def draws_on_device(self) -> bool:
        """Whether it takes logits on a GPU."""
        return not self.processors and not self.details and all(type(t) in ON_DEVICE for t in self.truncations)

    def __call__(self, rows: Rows, logits: Any, active: np.ndarray) -> SampledTokens:
        """active (R,): the index of each row within the request, which determines its random number.

        logits: a NumPy array or, if `draws_on_device`, a CuPy array, or the (R,) ids that `draw` chose from them.
        """
        if not isinstance(logits, np.ndarray):
            draw = None if logits.ndim == 1 else self.draw(rows.new_tokens, active)
            if draw is None or draw.works(logits):
                return drawn(logits if draw is None else draw(logits))
            logits = backends.move(logits, "numpy")
        check_finite(logits)
        scores = apply_processors(rows, logits[:, : self.config.vocab_size], self.processors)
        alive = scores.max(axis=1) > -np.inf if self.processors else None
        if alive is not None and not alive.all():
            return self._of_those_alive(rows, scores, logits, active, alive)
        return self._sample(rows, scores, logits, active)

    def draw(self, step: int, active: np.ndarray) -> Draw | None:
        """How the GPU should draw the tokens of a step; None if the logits are needed on the host."""
        if not self.draws_on_device:
            return None
        u = np.zeros(len(active))  # (R,)
        if self.numbers is not None and not self.config.greedy:
            u = self.numbers(step)[active]
        temperature, top_k, top_p = (0.0 if self.config.greedy else 1.0), 0, 1.0
        for truncation in self.truncations:  # none if it is greedy
            if isinstance(truncation, Temperature):
                temperature = truncation.temperature
            elif isinstance(truncation, TopK):
                top_k = truncation.k
            elif isinstance(truncation, TopP):
                top_p = truncation.p
        return Draw((u / UNIT).astype(np.int64), (self.config.vocab_size, temperature, top_k, top_p))

    def _of_those_alive(
        self, rows: Rows, scores: np.ndarray, logits: np.ndarray, active: np.ndarray, alive: np.ndarray
    ) -> SampledTokens:
        """Sample the rows that are alive. The dead ones do not affect them."""
        chosen, R = self._sample(rows, scores[alive], logits[alive], active[alive]), len(alive)
        ids, log_probs = np.zeros(R, np.int64), np.zeros((2, R))
        ids[alive] = chosen.ids
        if not self.details:
            return SampledTokens(ids, None, None, alive)
        log_probs[0, alive], log_probs[1, alive] = chosen.log_probs, chosen.processed_log_probs
        return SampledTokens(ids, log_probs[0], log_probs[1], alive)

    def _sample(self, rows: Rows, scores: np.ndarray, logits: np.ndarray, active: np.ndarray) -> SampledTokens:
        if self.config.greedy:
            ids = scores.argmax(axis=1)
            processed = _log_probs(scores, ids) if self.details else None
        else:
            assert self.numbers is not None
            u = self.numbers(rows.new_tokens)[active]  # (R,)
            drawn = [draw(row, number, self.truncations) for row, number in zip(scores, u, strict=True)]
            ids = np.array([token for token, _ in drawn], dtype=np.int64)
            processed = np.array([log_prob for _, log_prob in drawn])
        return SampledTokens(ids, _log_probs(logits, ids) if self.details else None, processed)


def drawn(ids: Any) -> SampledTokens:
    """What a `Draw` has returned, read by the host."""
    ids = backends.move(ids, "numpy")
    if (ids < 0).any():
        raise not_finite()
    return SampledTokens(ids, None, None)


def check_finite(logits: np.ndarray) -> None:
    """Raise UsageError for nan or inf, which a diverged model produces."""
    if not np.isfinite(logits).all():
        raise not_finite()


def not_finite() -> UsageError:
    return UsageError(f"{WHERE}: the model's logits are not finite: its weights contain nan or inf, or overflow")


def apply_processors(rows: Rows, logits: np.ndarray, processors: Sequence[Processor]) -> np.ndarray:
    """Apply the processors in order, in float64. Returns the logits themselves if there are no processors."""
    if not processors:
        return logits
    scores = logits.astype(np.float64)
    for processor in processors:
        scores = processor(rows, scores)
    return scores


def draw(scores: np.ndarray, u: float, truncations: Sequence[Temperature | Truncation] = ()) -> tuple[int, float]:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds u in [0, 1), and its log-probability.

    scores: (V,), of any floating-point dtype. Only tokens that pass the truncations are candidates. A token of
    probability 0 is never drawn, because the cumulative sum does not rise there.
    """
    given, ids = scores, None  # ids: of the candidates; None: all tokens
    for truncation in truncations:
        if isinstance(truncation, Temperature):
            scores = truncation(None, scores)
        else:
            kept = np.flatnonzero(truncation.keep(scores))
            ids = kept if ids is None else ids[kept]
            scores = scores[kept]
    reusable = scores is not given and scores.dtype == np.float64  # a temporary, which may be overwritten
    index, log_prob = inverse_cdf(unnormalized_probs(scores, out=scores if reusable else None), u)
    return (index if ids is None else int(ids[index])), log_prob


def inverse_cdf(weights: np.ndarray, u: float) -> tuple[int, float]:
    """The first index whose cumulative weight exceeds u in [0, 1) times the total, and the log of its probability.

    It finds the block first, from the sums of blocks, and takes the cumulative sum only within that block: a cumulative
    sum can't be vectorised, and over a whole vocabulary would take as long as everything else together.
    """
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)))
    total = blocks[-1]
    block = int(np.searchsorted(blocks, u * total, side="right"))  # u <= 1 - 2**-53: u * total stays below total
    first = block * _BLOCK
    within = np.cumsum(weights[first : first + _BLOCK])
    index = int(np.searchsorted(within, u * total - (blocks[block - 1] if block else 0.0), side="right"))
    if index == len(within):  # the two sums of the block were rounded differently: take the last nonzero weight
        index = int(np.searchsorted(within, within[-1]))
    return first + index, float(
        np.log(weights[first + index]) - np.log(total)
    )  # a difference of logs, because the quotient may underflow


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(R, V) -> (R, V) float64. -inf stays -inf."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _log_probs(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return log_softmax(logits)[np.arange(len(ids)), ids]


class Uniforms:
    """Random numbers for a request: (count,) float64 in [0, 1) per step, or (count, columns) if columns > 1.

    seed: one seed for all rows, or a tuple of seeds, each for `count / len(seed)` consecutive rows.
    """

    def __init__(self, seed: int | tuple[int, ...], count: int, columns: int = 1) -> None:
        self.seed, self.count, self.columns = seed, count, columns
        self._block, self._first = np.empty((0, 0, 0)), 0  # (steps, count, columns)

    def __call__(self, step: int) -> np.ndarray:
        if not self._first <= step < self._first + len(self._block):
            self._first = step
            self._block = self._make(range(self._first, self._first + _STEPS_AT_ONCE))
        numbers = self._block[step - self._first]
        return numbers[:, 0] if self.columns == 1 else numbers

    def _make(self, steps: range) -> np.ndarray:
        seeds = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        rows_per_seed = self.count // len(seeds)
        return np.concatenate([uniforms(seed, steps, rows_per_seed, self.columns) for seed in seeds], axis=1)


def uniforms(seed: int, steps: range, rows: int, columns: int = 1) -> np.ndarray:
    """(steps, rows, columns) float64 in [0, 1), 53 random bits each; a pure function of seed, step, row and column.

    Column j of row b uses words 2j and 2j + 1 of row b in the stream of its step (`tinygpt.random.words`).
    """
    c0, c1, step = (axis.astype(np.uint64) for axis in np.ix_(range(-(-columns // 2)), range(rows), range(len(steps))))
    low = step + np.uint64((_FIRST_STREAM + steps.start) & 0xFFFFFFFF)
    high = np.uint64((_FIRST_STREAM + steps.start) >> 32)
    zero = np.zeros(np.broadcast_shapes(c0.shape, c1.shape, step.shape), dtype=np.uint64)
    words = random.philox4x32(c0 + zero, c1 + zero, low + zero, high + zero, seed)  # four of (quads, rows, steps)
    pairs = [(words[i] << np.uint64(32)) | words[i + 1] for i in (0, 2)]
    bits = np.stack(pairs, axis=1).reshape(-1, rows, len(steps))[:columns]  # quad by quad, pair by pair
    return ((bits >> np.uint64(11)) * 2.0**-53).transpose(2, 1, 0)
