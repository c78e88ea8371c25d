"""Each processor by its definition: cases made by hand, and properties over random ones."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinygpt import UsageError
from tinygpt.generation import GenerationConfig, Rows
from tinygpt.generation.processors import (
    BadWords,
    BeginSuppressTokens,
    MinLength,
    MinNewTokens,
    NoRepeatNGram,
    RepetitionPenalty,
    SuppressTokens,
    history_processors,
    user_processors,
)
from tinygpt.generation.token_sampler import apply_processors, draw, inverse_cdf, uniforms
from tinygpt.generation.truncation import MinP, Temperature, TopK, TopP, TypicalP, truncations
from tinygpt.random import words

INF = math.inf


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def forbidden(processor, rows, new=0, V=6):
    """The ids that get -inf, for each row; all others must keep their scores."""
    logits = np.random.default_rng(0).standard_normal((len(rows), V))
    before = logits.copy()
    after = processor(Rows(rows, new), logits)
    np.testing.assert_array_equal(logits, before)
    kept = np.isfinite(after)
    np.testing.assert_array_equal(after[kept], before[kept])
    return [np.flatnonzero(~row).tolist() for row in kept]


# What the rows so far decide ------------------------------------------------------------------------


def test_repetition_penalty():
    logits = np.array([[1.0, -1.0, 2.0, 0.0], [1.0, -1.0, 2.0, -INF]])
    out = RepetitionPenalty(2.0)(Rows([[1, 1, 2], [0, 3, 9]]), logits)  # once however often; 9 can't be chosen
    np.testing.assert_array_equal(out, [[1, -2, 1, 0], [0.5, -1, 2, -INF]])


def test_no_repeat_ngram():
    assert forbidden(NoRepeatNGram(2), [[1, 2, 1], [1, 2, 3], [2, 2], [1]]) == [[2], [], [2], []]
    assert forbidden(NoRepeatNGram(3), [[1, 2, 3, 1, 2], [1, 2, 1], [1, 2, 4, 1, 2, 5, 1, 2]]) == [[3], [], [4, 5]]
    assert forbidden(NoRepeatNGram(1), [[1, 2, 1, 9]]) == [[1, 2]]


@settings(max_examples=150)
@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_no_repeat_ngram_forbids_exactly_the_tokens_that_would_repeat_one(size, ids):
    seen = {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)}
    want = [t for t in range(6) if tuple([*ids, t][-size:]) in seen and len(ids) >= size - 1]
    assert forbidden(NoRepeatNGram(size), [ids]) == [want]


def test_bad_words():
    processor = BadWords(((3,), (1, 2), (0, 1, 4), (5,)), eos=(5,))
    assert forbidden(processor, [[0, 1], [1], [1, 0], [0, 0, 1]]) == [[2, 3, 4], [2, 3], [3], [2, 3, 4]]


def test_lengths_hold_back_eos():
    assert forbidden(MinLength(3, (1, 4)), [[0, 0], [0, 0, 0]]) == [[1, 4], []]
    assert forbidden(MinNewTokens(2, (1,)), [[0, 0, 0, 0]], new=1) == [[1]]
    assert forbidden(MinNewTokens(2, (1,)), [[0, 0, 0, 0]], new=2) == [[]]


def test_suppressed_tokens():
    assert forbidden(SuppressTokens((2, 3)), [[0], [1]], new=7) == [[2, 3], [2, 3]]
    assert forbidden(BeginSuppressTokens((2,)), [[0], [0, 0]], new=0) == [[2], [2]]
    assert forbidden(BeginSuppressTokens((2,)), [[0, 1]], new=1) == [[]]


def test_the_order_of_the_processors():
    config = GenerationConfig(
        repetition_penalty=2, no_repeat_ngram_size=2, bad_words_ids=[[1]], min_length=1, eos_token_id=3,
        suppress_tokens=[2], begin_suppress_tokens=[4],
        max_new_tokens=5, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, typical_p=0.8,
    )  # fmt: skip
    names = [type(processor).__name__ for processor in history_processors(config)]
    assert names == [
        "RepetitionPenalty", "NoRepeatNGram", "BadWords", "MinLength", "SuppressTokens", "BeginSuppressTokens",
    ]  # fmt: skip
    assert truncations(config) == [Temperature(0.5), TopK(3), TopP(0.9), MinP(0.1), TypicalP(0.8)]
    assert history_processors(GenerationConfig(min_length=4, min_new_tokens=2)) == []  # no eos to hold back
    assert truncations(GenerationConfig(top_p=1.0, min_p=0.0, typical_p=1.0)) == []
    assert truncations(GenerationConfig(do_sample=False)) == truncations(GenerationConfig(temperature=0)) == []
    # In beam search a beam must be able to go on.
    assert truncations(GenerationConfig(num_beams=2, top_k=1)) == [TopK(1, 2)]
    assert truncations(GenerationConfig(num_beams=2, top_p=0.1, eos_token_id=[1, 2])) == [TopP(0.1, 3)]


# What thins the distribution ------------------------------------------------------------------------


def kept(truncation, scores):
    scores = np.array(scores, dtype=np.float64)
    mask = truncation.keep(scores)
    dense = truncation(Rows([[0]]), scores[None])[0]
    np.testing.assert_array_equal(dense, np.where(mask, scores, -INF))
    return np.flatnonzero(mask).tolist()


def test_temperature():
    np.testing.assert_array_equal(Temperature(0.5)(None, np.array([[1.0, 3.0, 2.0]])), [[2, 6, 4]])
    tiny = Temperature(1e-320)(None, np.array([[1.0, 3.0, -INF], [-2.0, -1.0, -3.0], [-INF, -INF, -INF]]))
    np.testing.assert_array_equal(softmax(tiny[:2]), [[0, 1, 0], [0, 1, 0]])  # no overflow, no nan
    np.testing.assert_array_equal(tiny[2], [-INF, -INF, -INF])


def test_top_k_keeps_ties():
    assert kept(TopK(1), [1, 3, 2, 2, 0]) == [1]
    assert kept(TopK(2), [1, 3, 2, 2, 0]) == [1, 2, 3]
    assert kept(TopK(2), [5, 5, 5, 1, 2]) == [0, 1, 2]
    assert kept(TopK(9), [5, 5, 5, 1, 2]) == [0, 1, 2, 3, 4]
    assert kept(TopK(1, 2), [1, 3, 2, 0]) == [1, 2]


def test_top_p_keeps_the_crossing_token():
    scores = np.log([0.1, 0.5, 0.15, 0.25])
    assert kept(TopP(1e-9), scores) == [1]  # at least one stays
    assert kept(TopP(0.49), scores) == [1]
    assert kept(TopP(0.51), scores) == [1, 3]  # 0.5 is not enough: the next one crosses
    assert kept(TopP(0.74), scores) == [1, 3]
    assert kept(TopP(0.76), scores) == [1, 2, 3]
    assert kept(TopP(1.0), scores) == [0, 1, 2, 3]
    assert kept(TopP(0.1, 3), scores) == [1, 2, 3]
    assert kept(TopP(0.5), [0, 0, 0, 0]) == [2, 3]  # of equals the lower ids go first
    assert kept(TopP(0.5, 2), [0, -1000, -2000]) == [0, 1]  # the second best, though both have the probability 0


def test_top_p_keeps_the_best_where_probabilities_are_0():
    logits = np.array([[0.0, 5000.0, -2000.0, 1000.0, -INF]])
    np.testing.assert_array_equal(TopP(0.5, 3)(None, logits), [[0.0, 5000.0, -INF, 1000.0, -INF]])


@settings(max_examples=150)
@given(
    hnp.arrays(np.float64, st.integers(1, 200), elements=st.integers(-6, 6).map(float)),
    st.floats(0.01, 0.99),
    st.integers(1, 3),
)
def test_top_p_by_its_definition(scores, p, least):
    """Sorted, and added up one by one: the oracle without a shortcut."""
    order = np.lexsort((np.arange(len(scores)), scores))  # ascending, of equals the lower id first
    gone = np.cumsum(softmax(scores)[order])
    if np.abs(gone - (1 - p)).min() < 1e-9:
        return  # on the edge, rounding decides
    want = order[min((gone <= 1 - p).sum(), max(0, len(order) - least)) :]
    assert kept(TopP(p, least), scores) == sorted(want.tolist())


def test_min_p():
    scores = np.log([0.5, 0.3, 0.11, 0.09])
    assert kept(MinP(0.2), scores) == [0, 1, 2]
    assert kept(MinP(1.0), scores) == [0]
    assert kept(MinP(1.0, 2), scores) == [0, 1]
    assert kept(MinP(0.5), [2, 2, 1, 2]) == [0, 1, 3]


def test_typical_p():
    # Entropy 1.17 nats: of the surprises 0.51, 1.39, 2.30, 2.99 the second is the nearest, then the first.
    scores = np.log([0.6, 0.25, 0.1, 0.05])
    assert kept(TypicalP(0.2), scores) == [1]
    assert kept(TypicalP(0.3), scores) == [0, 1]
    assert kept(TypicalP(0.9), scores) == [0, 1, 2]
    assert kept(TypicalP(1.0), scores) == [0, 1, 2, 3]
    assert kept(TypicalP(0.2, 3), scores) == [0, 1, 2]
    assert kept(TypicalP(0.2), [0, 0, 0, -INF]) == [0, 1, 2]  # as near as the last one: all stay


@pytest.mark.parametrize("kind", ["flat", "peaked", "rounded", "equal", "mostly ruled out", "ordered"])
@pytest.mark.parametrize("n", [2049, 30_000])
def test_top_p_of_a_large_vocabulary_by_its_definition(kind: str, n: int) -> None:
    """The search by samples finds what sorting everything does, wherever the border is, and with equal scores."""
    rng = np.random.default_rng(n)
    scores = rng.standard_normal(n) * {"flat": 0.1, "peaked": 9.0}.get(kind, 1.0)
    if kind in ("rounded", "equal"):
        scores = np.round(scores) if kind == "rounded" else np.zeros(n)
    elif kind == "mostly ruled out":
        scores[rng.random(n) < 0.9] = -INF
    elif kind == "ordered":
        scores.sort()
    order = np.argsort(scores, kind="stable")
    weights = np.exp(scores[order] - scores.max())
    for p in (0.0, 0.01, 0.3, 0.5, 0.9, 0.999, 0.999999):
        for least in (1, 5):
            dropped = np.searchsorted(np.cumsum(weights), (1 - p) * weights.sum(), side="right")
            want = sorted(order[min(dropped, n - least) :])
            assert kept(TopP(p, least), scores) == want, (p, least)


TRUNCATIONS = (TopK(3), TopP(0.6), MinP(0.3), TypicalP(0.6), TopP(0.9), TopK(1))


@settings(max_examples=150)
@given(hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(-8, 8)), st.integers(0, 2**32))
def test_what_is_ruled_out_changes_nothing(scores, seed):
    """-inf among the scores, or the scores without them: the same are kept. Draws work on candidates because of it."""
    places = np.flatnonzero(np.random.default_rng(seed).random(2 * len(scores)) < 0.5)[: len(scores)]
    scores = scores[: len(places)]
    if not len(scores):
        return
    full = np.full(2 * 40, -INF)
    full[places] = scores
    for truncation in TRUNCATIONS:
        among = np.flatnonzero(truncation.keep(full) & (full > -INF))
        np.testing.assert_array_equal(among, places[truncation.keep(scores)])


@pytest.mark.parametrize(
    "processor",
    [
        *TRUNCATIONS, Temperature(0.7), RepetitionPenalty(1.3), NoRepeatNGram(2), BadWords(((1,), (2, 3))),
        SuppressTokens((1,)),
    ],
)  # fmt: skip
def test_processors_leave_their_input_alone_and_take_rows_apart(processor):
    logits = np.random.default_rng(0).standard_normal((4, 9))
    rows = np.random.default_rng(1).integers(0, 9, (4, 12))
    before = logits.copy()
    together = processor(Rows(list(rows)), logits)
    np.testing.assert_array_equal(logits, before)
    for b in range(4):
        np.testing.assert_array_equal(processor(Rows([rows[b]]), logits[b : b + 1])[0], together[b])


def test_rows_without_a_choice_left():
    ruled_out = np.full((2, 3), -INF)
    for truncation in TRUNCATIONS:  # in beam search other beams may go on
        np.testing.assert_array_equal(truncation(Rows([[0], [0]]), ruled_out), ruled_out)


# A user's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        (lambda rows, logits: logits[0], r"must return logits \(1, 3\), not \(3,\)"),
        (lambda rows, logits: logits > 0, "must return numbers, not bool"),
        (lambda rows, logits: logits * math.nan, "returned nan or"),
        (lambda rows, logits: logits + INF, "returned nan or"),
        (lambda rows, logits: None, "must return logits"),
    ],
)
def test_what_a_users_processor_returns_is_checked(processor, words):
    with pytest.raises(UsageError, match=words):
        apply_processors(Rows([[0]]), np.ones((1, 3)), user_processors([processor]))


def test_users_processors_are_functions():
    assert len(user_processors(lambda rows, logits: logits)) == 1
    for wrong in ([3], "no", 5):
        with pytest.raises(UsageError, match="logits_processor must be a list of functions"):
            user_processors(wrong)


# Drawing --------------------------------------------------------------------------------------------


def test_draw_inverts_the_cumulative_probabilities():
    logits = np.log([0.25, 0.5, 0.25])
    for u, token in [(0.0, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 2), (1 - 2**-53, 2)]:
        drawn, log_prob = draw(logits, u)
        assert drawn == token
        assert log_prob == pytest.approx(logits[token])


def test_draw_leaves_its_input_alone():
    for dtype in (np.float32, np.float64):
        logits = np.random.default_rng(0).standard_normal(9).astype(dtype)
        before = logits.copy()
        for truncations_of_it in ([], [Temperature(1.0)], [TopK(20), Temperature(0.5)], [TopP(0.9)]):
            draw(logits, 0.5, truncations_of_it)
            np.testing.assert_array_equal(logits, before)


def test_draw_never_takes_what_was_ruled_out():
    logits = np.array([-INF, 0.0, -INF, 0.0, -INF])
    numbers = [0.0, 0.5, 1 - 2**-53, *np.random.default_rng(0).random(300)]
    assert {draw(logits, u)[0] for u in numbers} == {1, 3}


@settings(max_examples=150)
@given(
    hnp.arrays(np.float64, st.integers(1, 1500), elements=st.floats(0, 1)),
    st.floats(0, 1, exclude_max=True),
)
@example(np.array([5e-324, 1.0, 1.0]), 0.0)  # its share of the sum is too small for a float
def test_inversion_over_blocks_is_inversion(weights, u):
    weights[np.random.default_rng(len(weights)).integers(len(weights))] = 1.0
    index, log_prob = inverse_cdf(weights, u)
    cumulative = np.cumsum(weights)
    assert weights[index] > 0
    assert log_prob == pytest.approx(math.log(weights[index]) - math.log(cumulative[-1]), abs=1e-9)
    assert cumulative[index] - weights[index] <= u * cumulative[-1] + 1e-9
    assert cumulative[index] >= u * cumulative[-1] - 1e-9


def test_inversion_where_the_sums_of_a_block_are_rounded_differently():
    """The sum of a block may be greater than its numbers added up one by one: u between them must find a token."""
    between, u = 0, 1 - 2**-53
    for seed in range(50):
        weights = np.append(np.random.default_rng(seed).random(200), np.zeros(9))
        between += np.cumsum(weights)[-1] <= u * np.add.reduceat(weights, [0])[0]
        assert inverse_cdf(weights, u)[0] == 199
    assert between > 5


# Multiples of 1/1024: scores that differ by a rounding error may be kept one way and dropped the other.
@settings(max_examples=150)
@given(
    hnp.arrays(np.float32, st.integers(2, 60), elements=st.integers(-8192, 8192).map(lambda n: n / 1024)),
    st.floats(0, 1, exclude_max=True),
    st.permutations([TopK(5), TopP(0.8), MinP(0.1), TypicalP(0.7)]),
    st.floats(0.2, 3),
)
def test_draw_among_candidates_is_the_draw_from_the_processed_logits(scores, u, order, temperature):
    chosen = [order[0], Temperature(temperature), *order[1:]]
    dense = scores.astype(np.float64)[None]
    for truncation in chosen:
        dense = truncation(Rows([[0]]), dense)
    token, log_prob = draw(scores, u, chosen)
    probabilities = softmax(dense)[0]
    cumulative = np.cumsum(probabilities)
    if np.abs(cumulative - u).min() > 1e-9:
        assert token == (cumulative <= u).sum()
    assert log_prob == pytest.approx(math.log(probabilities[token]), abs=1e-9)


@pytest.mark.slow
def test_frequencies_are_the_probabilities():
    """Pearson's chi-square over 20,000 draws by the sampler's own random numbers, of a fixed seed."""
    probabilities = np.array([0.4, 0.05, 0.3, 0.01, 0.24])
    n = 20_000
    numbers = uniforms(7, range(n // 100), 100)[:, :, 0]
    drawn = np.array([draw(np.log(probabilities), u)[0] for u in numbers.ravel()])
    counts = np.bincount(drawn, minlength=5)
    chi_square = ((counts - n * probabilities) ** 2 / (n * probabilities)).sum()
    assert chi_square < 18.47  # four degrees of freedom: exceeded once in a thousand seeds
    rows = drawn.reshape(-1, 100)  # and consecutive draws of one row are not tied to each other
    assert np.mean((rows[:-1] == 0) & (rows[1:] == 0)) == pytest.approx(0.16, abs=0.012)


def test_random_numbers_are_those_of_their_streams():
    made = uniforms(2**63 + 5, range(62, 67), 3, 5)
    for i, step in enumerate(range(62, 67)):
        pairs = words(2**63 + 5, (1 << 48) + step, 3, 10).astype(np.uint64).reshape(3, 5, 2)
        bits = (pairs[..., 0] << np.uint64(32)) | pairs[..., 1]
        np.testing.assert_array_equal(made[i], (bits >> np.uint64(11)) * 2.0**-53)
