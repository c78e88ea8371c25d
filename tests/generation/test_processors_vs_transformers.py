"""Each logits processor against transformers' class of the same purpose; and all together in its order.

Both sides compute in float64, so the arrays must agree to rounding, and -inf must stand at the same places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.compat import (
    generate_theirs,
    log_softmax,
    torch,
    transformers,
)
from tests.generation.side_by_side import SMALL_V as V
from tests.generation.side_by_side import make_small_pair
from tinygpt import GPT, UsageError
from tinygpt.generation import GenerationConfig, Rows
from tinygpt.generation import processors as history
from tinygpt.generation import truncation as ours
from tinygpt.generation.processors import history_processors
from tinygpt.generation.truncation import truncations

theirs = transformers.generation.logits_process

INF = float("inf")


@st.composite
def scores(draw: st.DrawFn, rows: int = 1, ties: bool = True) -> np.ndarray:
    """(rows, V) float64: any size, from flat to one token of probability 1, some -inf; with ties if wanted."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    kind = draw(st.sampled_from(["normal", "flat", "sharp", "huge", "whole"] if ties else ["normal", "flat", "sharp"]))
    array = rng.standard_normal((rows, V)) * {"flat": 1e-3, "sharp": 30, "huge": 1e4}.get(kind, 1.5)
    if kind == "whole":
        array = np.rint(array)
    masked = rng.random(array.shape) < draw(st.sampled_from([0, 0, 0.3, 0.9]), label="share of -inf")
    masked[np.arange(rows), rng.integers(0, V, rows)] = False  # a token must be left
    return np.where(masked, -INF, array)


@st.composite
def histories(draw: st.DrawFn, rows: int) -> np.ndarray:
    """(rows, T) ids of few kinds, so that they repeat."""
    T = draw(st.integers(1, 12))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(
        0, draw(st.sampled_from([1, 2, 4, V])), (rows, T)
    )


def call_theirs(processor: Any, logits: np.ndarray, ids: Any = None) -> np.ndarray:
    ids = np.zeros((len(logits), 1), dtype=np.int64) if ids is None else ids
    with np.errstate(all="ignore"):
        return processor(torch.tensor(ids), torch.tensor(logits)).numpy()


def check(our: Any, their: Any, logits: np.ndarray, ids: np.ndarray, new: int = 0) -> None:
    wanted = call_theirs(their, logits, ids)
    found = our(Rows(list(ids), new), logits.copy())
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=0)


# What the rows so far decide --------------------------------------------------------------------------


@settings(max_examples=60)
@given(scores(3), histories(3), st.sampled_from([0.5, 1.0, 1.2, 1e3]))
def test_repetition_penalty(logits: np.ndarray, ids: np.ndarray, penalty: float) -> None:
    check(history.RepetitionPenalty(penalty), theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)


@settings(max_examples=60)
@given(scores(3), histories(3), st.integers(1, 5))
def test_no_repeat_ngram(logits: np.ndarray, ids: np.ndarray, size: int) -> None:
    check(history.NoRepeatNGram(size), theirs.NoRepeatNGramLogitsProcessor(size), logits, ids)


words = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=60)
@given(scores(3), histories(3), words, st.lists(st.integers(0, V - 1), max_size=2))
def test_bad_words(logits: np.ndarray, ids: np.ndarray, words: list[list[int]], eos: list[int]) -> None:
    assume(any(word != [token] for word in words for token in eos) or not eos)  # theirs takes no empty list
    try:
        their = theirs.NoBadWordsLogitsProcessor(words, eos or None)
    except ValueError:
        return  # all words are eos tokens: nothing to compare
    check(history.BadWords(tuple(map(tuple, words)), tuple(eos)), their, logits, ids)


@settings(max_examples=40)
@given(scores(2), histories(2), st.integers(0, 14), st.sets(st.integers(0, V - 1), min_size=1, max_size=3))
def test_lengths_hold_back_eos(logits: np.ndarray, ids: np.ndarray, least: int, eos: set[int]) -> None:
    tokens = tuple(eos)
    check(history.MinLength(least, tokens), theirs.MinLengthLogitsProcessor(least, list(eos)), logits, ids)
    for prompt in range(1, ids.shape[1] + 1):
        new = ids.shape[1] - prompt
        their = theirs.MinNewTokensLengthLogitsProcessor(prompt, least, list(eos))
        check(history.MinNewTokens(least, tokens), their, logits, ids, new)


@settings(max_examples=40)
@given(scores(2), histories(2), st.sets(st.integers(0, V - 1), min_size=1))
def test_suppressed_tokens(logits: np.ndarray, ids: np.ndarray, tokens: set[int]) -> None:
    some, T = tuple(tokens), ids.shape[1]
    for prompt in range(1, T + 1):
        their = theirs.SuppressTokensAtBeginLogitsProcessor(list(some), prompt)
        check(history.BeginSuppressTokens(some), their, logits, ids, new=T - prompt)
    check(history.SuppressTokens(some), theirs.SuppressTokensLogitsProcessor(list(some)), logits, ids)


# What thins the distribution --------------------------------------------------------------------------

NOTHING = np.zeros((2, 1), dtype=np.int64)
p_values = st.one_of(st.floats(1e-6, 1 - 1e-6), st.sampled_from([0.1, 0.5, 0.9, 0.999]))


def clear_of(cumulative: np.ndarray, border: float) -> bool:
    """Whether no sum is so near the border that rounding decides on which side it is."""
    return bool((np.abs(cumulative - border) > 1e-9).all())


def probabilities(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


@settings(max_examples=60)
@given(scores(2), st.sampled_from([1e-3, 0.3, 1.0, 2.0, 1e3]))
def test_temperature(logits: np.ndarray, temperature: float) -> None:
    check(ours.Temperature(temperature), theirs.TemperatureLogitsWarper(temperature), logits, NOTHING)


@settings(max_examples=100)
@given(scores(2), st.integers(1, V + 5), st.integers(1, 3))
def test_top_k_with_ties_and_beyond_the_vocabulary(logits: np.ndarray, k: int, least: int) -> None:
    check(ours.TopK(k, least), theirs.TopKLogitsWarper(k, min_tokens_to_keep=least), logits, NOTHING)


@settings(max_examples=150)
@given(scores(2, ties=False), p_values, st.integers(1, 3))
def test_top_p(logits: np.ndarray, p: float, least: int) -> None:
    assume(clear_of(np.cumsum(np.sort(probabilities(logits))), 1 - p))
    # Of tokens with -inf, which least may keep, nobody sees which: they stay -inf.
    check(ours.TopP(p, least), theirs.TopPLogitsWarper(p, min_tokens_to_keep=least), logits, NOTHING)


@settings(max_examples=150)
@given(scores(2), p_values, st.integers(1, 3))
def test_top_p_keeps_as_many_of_equals(logits: np.ndarray, p: float, least: int) -> None:
    """Which of equals stay is open in theirs, whose sort is not stable. Ours keeps the higher ids, always."""
    assume(all(clear_of(np.cumsum(np.sort(row)), 1 - p) for row in probabilities(logits)))
    found = ours.TopP(p, least)(Rows(list(NOTHING)), logits)
    wanted = call_theirs(theirs.TopPLogitsWarper(p, min_tokens_to_keep=least), logits)
    np.testing.assert_array_equal(np.sort(found), np.sort(wanted))
    for row, kept in zip(logits, np.isfinite(found), strict=True):
        for score in np.unique(row[np.isfinite(row)]):
            among = kept[row == score]
            assert (np.diff(among.astype(int)) >= 0).all()


@pytest.mark.parametrize("gone", range(8))
def test_top_p_where_a_sum_meets_the_border_exactly(gone: int) -> None:
    """Eighths add up exactly: those gone have at most 1 - p together, so at p = 0.5 four of eight go."""
    logits = np.array([[2.0] * 8 + [-INF] * 4, [-INF] * 2 + [-7.0] * 8 + [-INF] * 2])
    found = ours.TopP(1 - gone / 8)(Rows(list(NOTHING)), logits)
    assert np.isfinite(found).sum(axis=1).tolist() == [8 - gone] * 2
    np.testing.assert_array_equal(np.sort(found), np.sort(call_theirs(theirs.TopPLogitsWarper(1 - gone / 8), logits)))


@settings(max_examples=150)
@given(scores(2), st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])), st.integers(1, 3))
def test_min_p(logits: np.ndarray, p: float, least: int) -> None:
    shares = probabilities(logits)
    assume(all(clear_of(np.delete(row, row.argmax()), p * row.max()) or p in (0, 1) for row in shares))
    if least > 1:  # which of equals are added is open in theirs, which compares what is left of them after exp
        for row, share in zip(logits, shares, strict=True):
            assume(len(set(share[share > 0])) == np.isfinite(row).sum())
    check(ours.MinP(p, least), theirs.MinPLogitsWarper(p, min_tokens_to_keep=least), logits, NOTHING)


@settings(max_examples=150)
@given(scores(2), p_values, st.integers(1, 3))
def test_typical_p(logits: np.ndarray, mass: float, least: int) -> None:
    for row in logits:
        log_p = log_softmax(row)
        p = np.exp(log_p)
        distance = np.abs(-log_p + (p[p > 0] * log_p[p > 0]).sum())
        order = np.argsort(distance, kind="stable")
        with np.errstate(invalid="ignore"):
            apart = np.diff(distance[order]) > 1e-9
        equal = row[order][1:] == row[order][:-1]
        assume((apart | equal | ~np.isfinite(distance[order][1:])).all())  # else rounding decides the order
        assume(clear_of(np.cumsum(p[order]), mass))
        assume(least == 1 or not equal[np.isfinite(row[order][1:])].any())  # which of equals are added is open
    check(ours.TypicalP(mass, least), theirs.TypicalLogitsWarper(mass, min_tokens_to_keep=least), logits, NOTHING)


def test_on_purpose_a_temperature_too_small_for_floating_point_leaves_the_best() -> None:
    """Theirs divides to infinity, whose softmax is nan. Ours moves the best score to 0 first."""
    logits = np.array([[1e300, 2e300, 0.0]])
    assert np.isnan(log_softmax(call_theirs(theirs.TemperatureLogitsWarper(1e-20), logits))).all()
    found = ours.Temperature(1e-20)(None, logits)
    np.testing.assert_array_equal(np.exp(log_softmax(found)), [[0, 1, 0]])


# All together -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """(ours, transformers'): one model."""
    return make_small_pair(tmp_path_factory.mktemp("model"))


ids_of_tokens = st.lists(st.integers(0, V - 1), min_size=1, max_size=2, unique=True)
OPTIONAL = {
    "repetition_penalty": st.sampled_from([0.7, 1.3, 3.0]),
    "no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=3),
    "min_length": st.integers(1, 6),
    "min_new_tokens": st.integers(1, 4),
    "suppress_tokens": ids_of_tokens,
    "begin_suppress_tokens": ids_of_tokens,
    "temperature": st.sampled_from([0.3, 0.9, 4.0]),
    "top_k": st.integers(1, V + 3),
    "top_p": st.sampled_from([0.2, 0.6, 0.97]),
    "min_p": st.sampled_from([0.01, 0.1, 0.5]),
    "typical_p": st.sampled_from([0.2, 0.6, 0.97]),
}


@settings(max_examples=120)
@given(
    st.fixed_dictionaries({}, optional=OPTIONAL),
    st.integers(1, 4),
    st.sampled_from([None, 5, [5, 6]]),
    st.integers(0, 99),
)
def test_all_in_their_order(pair: Any, options: dict[str, Any], T: int, eos: Any, seed: int) -> None:
    """What their generate drew from at each step, from the logits that it had there: ours makes the same of them."""
    assume(not {"min_length", "min_new_tokens"} <= options.keys())  # one replaces the other: tested on its own
    options |= {"max_new_tokens": 6, "do_sample": True, "eos_token_id": eos}
    if all(word in ([5], [6]) for word in options.get("bad_words_ids", [])):
        options.pop("bad_words_ids", None)  # eos tokens alone make an empty list, which theirs refuses
    prompt = np.random.default_rng(seed).integers(0, V, (2, T))
    torch.manual_seed(seed)
    settings = {"top_k": 0, "pad_token_id": 0} | options
    try:
        steps = generate_theirs(
            pair[1], prompt, return_dict_in_generate=True, output_scores=True, output_logits=True, **settings
        )
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        assume(False)  # their draw from no token at all; ours has a sentence for it, see below
    config = GenerationConfig(**options)
    processors = [*history_processors(config), *truncations(config)]
    ended = np.zeros(2, dtype=bool)
    for step, (raw, wanted) in enumerate(zip(steps.logits, steps.scores, strict=True)):
        rows = steps.sequences[:, : T + step].numpy()
        found = raw.numpy().astype(np.float64)
        for processor in processors:
            found = processor(Rows(list(rows), step), found)
        going = ~ended
        np.testing.assert_array_equal(np.isneginf(found[going]), np.isneginf(wanted.numpy()[going]))
        np.testing.assert_allclose(found[going], wanted.numpy()[going], rtol=1e-5, atol=1e-6)
        ended |= np.isin(steps.sequences[:, T + step].numpy(), config.eos_ids)


# On purpose -------------------------------------------------------------------------------------------


def test_on_purpose_temperature_0_is_greedy(pair: Any) -> None:
    prompt = np.array([[3, 7, 7]])
    with pytest.raises(ValueError, match="temperature"):
        generate_theirs(pair[1], prompt, do_sample=True, temperature=0.0, max_new_tokens=3)
    greedy = generate_theirs(pair[1], prompt, max_new_tokens=3).numpy()
    np.testing.assert_array_equal(pair[0].generate(prompt, max_new_tokens=3, temperature=0), greedy)


def test_on_purpose_no_token_left_is_a_sentence(pair: Any) -> None:
    everything: dict[str, Any] = {"suppress_tokens": list(range(V)), "max_new_tokens": 2}
    with pytest.raises(UsageError, match="rule out every token"):
        pair[0].generate(np.array([[3]]), seed=0, **everything)
    assert generate_theirs(pair[1], np.array([[3]]), **everything).shape == (1, 3)  # greedy: token 0, suppressed


def test_on_purpose_the_defaults_differ() -> None:
    """Drawing from all of the vocabulary is the default here; there it is greedy, and of the 50 best if drawn."""
    config = GenerationConfig()
    assert (config.do_sample, config.top_k) == (True, None)
    their = transformers.GenerationConfig()
    assert not their.do_sample
