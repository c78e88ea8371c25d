"""Beam search against exhaustive search, which is a true oracle where every continuation can be a beam; its rules."""

import itertools

import numpy as np
import pytest

from tests.generation.helpers import PROMPTS, make, next_log_probs
from tinygpt import GPT, GPTConfig, UsageError
from tinygpt.generation import beam
from tinygpt.generation.beam import best, sample_without_replacement
from tinygpt.generation.request import prepare
from tinygpt.tokenizers import CharTokenizer

EOS = 2


@pytest.fixture(scope="module")
def tiny():
    """Four tokens: all texts of a few tokens can be scored one by one."""
    model = GPT(GPTConfig(vocab_size=4, block_size=8, n_layer=1, n_head=1, n_embd=8), seed=3, dtype=np.float64)
    for parameter in model.parameters():
        parameter.data += 0.6 * np.random.default_rng(parameter.size).standard_normal(parameter.shape)
    return model


def every_row(model, prompt, count, penalty, eos=None, score=lambda row, log_probs: log_probs):
    """All rows that can follow: `count` tokens, or fewer up to an eos, with their scores, best first."""
    found = {}
    for tokens in itertools.product(range(4), repeat=count):
        total, row = 0.0, list(prompt)
        for token in tokens:
            total += score(row, next_log_probs(model, row))[token]
            row.append(token)
            if token == eos:
                break
        found[tuple(row[len(prompt) :])] = total / (len(row) - len(prompt)) ** penalty
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("eos", [None, EOS])
def test_with_room_for_everything_it_is_exhaustive_search(tiny, penalty, eos):
    prompt, count = [1, 3], 4
    want = every_row(tiny, prompt, count, penalty, eos)
    out = tiny.generate(
        [prompt], count, do_sample=False, num_beams=4**count, num_return_sequences=20, length_penalty=penalty,
        eos_token_id=eos, pad_token_id=0, early_stopping="never", return_details=True,
    )  # fmt: skip
    for r, (tokens, score) in enumerate(want[:20]):
        assert tuple(out.sequences[r, 2 : 2 + out.lengths[r]]) == tokens
        assert out.scores[r] == pytest.approx(score, abs=1e-12)
        assert (out.sequences[r, 2 + out.lengths[r] :] == 0).all()
        assert out.finish_reasons[r] == ("eos" if tokens[-1] == eos else "length")


@pytest.mark.slow
def test_exhaustive_search_with_a_processor_and_minimum_length(tiny):
    def no_repeat(row, log_probs):
        return np.where(np.isin(np.arange(4), row) & (np.arange(4) != EOS), log_probs - 1.0, log_probs)

    def user(rows, scores):
        return np.stack([no_repeat(row, s) for row, s in zip(rows, scores, strict=True)])

    want = [
        (tokens, score)
        for tokens, score in every_row(tiny, [0], 4, 1.0, EOS, no_repeat)
        if len(tokens) > 2 or EOS not in tokens
    ]
    out = tiny.generate(
        [[0]], 4, do_sample=False, num_beams=256, num_return_sequences=9, eos_token_id=EOS, pad_token_id=0,
        min_new_tokens=2, logits_processor=[user], return_details=True,
    )  # fmt: skip
    for r, (tokens, score) in enumerate(want[:9]):
        assert tuple(out.sequences[r, 1 : 1 + out.lengths[r]]) == tokens
        assert out.scores[r] == pytest.approx(score, abs=1e-12)


def test_scores_are_the_sums_of_what_is_returned():
    model = make(block_size=32)
    out = model.generate(
        PROMPTS, 7, do_sample=False, num_beams=4, num_return_sequences=3, length_penalty=0.7, eos_token_id=[3, 5],
        repetition_penalty=1.5, return_details=True,
    )  # fmt: skip
    np.testing.assert_allclose(out.scores, out.processed_log_probs.sum(axis=1) / out.lengths**0.7)
    assert (np.diff(out.scores.reshape(5, 3), axis=1) <= 0).all()
    for r, row in enumerate(out.sequences):
        for t in range(out.lengths[r]):
            want = next_log_probs(model, row[: 4 + t])[row[4 + t]]
            assert out.log_probs[r, t] == pytest.approx(want, abs=1e-9)
    assert len({tuple(row) for row in out.sequences.tolist()}) == 15


def test_beams_find_what_greedy_misses():
    model = make(block_size=32)
    greedy = model.generate(PROMPTS, 8, do_sample=False, return_details=True).log_probs.sum(axis=1)
    beams = model.generate(PROMPTS, 8, do_sample=False, num_beams=6, return_details=True).log_probs.sum(axis=1)
    assert (beams >= greedy - 1e-9).all()
    assert (beams > greedy + 0.01).any()


def steps_and_score(model, **options):
    count = itertools.count()

    def watch(rows, scores):
        next(count)
        return scores

    out = model.generate(
        [[1]], 7, do_sample=False, num_beams=2, logits_processor=[watch], return_details=True, **options
    )  # fmt: skip
    return next(count), out.scores[0]


def test_early_stopping(tiny):
    """True stops at num_beams hypotheses, False where the best beam is now worse than they are, "never" goes on as
    long as a longer one could still be better."""
    first = {early: steps_and_score(tiny, early_stopping=early, eos_token_id=[0, 3]) for early in (True, False)}
    assert (first[True][0], first[False][0]) == (2, 7)
    assert first[True][1] < first[False][1]
    then = {
        early: steps_and_score(tiny, early_stopping=early, eos_token_id=1, length_penalty=2.0)
        for early in (False, "never")
    }
    assert (then[False][0], then["never"][0]) == (2, 7)
    assert then[False][1] < then["never"][1]


def test_beams_past_the_block_and_stop_strings():
    model = make()
    out = model.generate(PROMPTS, 9, do_sample=False, num_beams=3, return_details=True)  # the window of 6 slides
    for r, row in enumerate(out.sequences):
        for t in range(9):
            assert out.log_probs[r, t] == pytest.approx(next_log_probs(model, row[: 4 + t])[row[4 + t]], abs=1e-9)
    stopped = model.generate(PROMPTS, 9, do_sample=False, num_beams=3, overflow="stop", return_details=True)
    assert (stopped.lengths.tolist(), set(stopped.finish_reasons)) == ([2] * 5, {"block"})
    tokenizer = CharTokenizer("abcdefghijklm")
    text = tokenizer.decode(out.sequences[0, 4:])
    stop = text[2:4]
    ended = model.generate(
        PROMPTS[:1], 9, do_sample=False, num_beams=3, early_stopping=True, stop_strings=stop, tokenizer=tokenizer,
        num_return_sequences=2, pad_token_id=0, return_details=True,
    )  # fmt: skip
    for r, reason in enumerate(ended.finish_reasons):
        row = tokenizer.decode(ended.sequences[r, 4 : 4 + ended.lengths[r]])
        assert (stop in row) == (reason == "stop_string")
        assert stop not in row[:-1]
    assert "stop_string" in ended.finish_reasons


def test_too_few_continuations(tiny):
    out = tiny.generate([[1]], 1, do_sample=False, num_beams=4, num_return_sequences=4)
    assert sorted(out[:, 1].tolist()) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="found only 4 distinct rows for num_return_sequences=5"):
        tiny.generate([[1]], 1, do_sample=False, num_beams=5, num_return_sequences=5)
    with pytest.raises(UsageError, match="found only 0 distinct rows"):
        tiny.generate([[1]], 2, do_sample=False, num_beams=2, suppress_tokens=[0, 1, 2, 3])
    np.testing.assert_array_equal(tiny.generate([[1]], 0, num_beams=2, num_return_sequences=2), [[1], [1]])


# Sampled beams --------------------------------------------------------------------------------------


def test_the_best_are_found_in_order():
    totals = np.array([1.0, 3.0, -np.inf, 3.0, 2.0, 1.0])
    assert best(totals, 3).tolist() == [1, 3, 4]
    assert best(totals, 4).tolist() == [1, 3, 4, 0]
    assert best(totals, 99).tolist() == [1, 3, 4, 0, 5]


@pytest.mark.slow
def test_drawing_without_replacement():
    """The chance of an ordered pair is p_i p_j / (1 - p_i): chi-square over all pairs."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    n, generator = 20_000, np.random.default_rng(0)
    counts = np.zeros((4, 4))
    for u in generator.random((n, 2)):
        first, second = sample_without_replacement(np.log(p) - 700.0, u)
        counts[first, second] += 1
    expected = n * p[:, None] * p / (1 - p[:, None])
    off = ~np.eye(4, dtype=bool)
    assert (np.diag(counts) == 0).all()
    assert ((counts[off] - expected[off]) ** 2 / expected[off]).sum() < 31.3  # 11 degrees of freedom: 1 in 1000


def test_drawing_without_replacement_where_little_is_left():
    u = np.full(5, 0.4)
    assert sorted(sample_without_replacement(np.array([0.0, -2000.0, -np.inf, -4000.0]), u).tolist()) == [0, 1, 3]
    assert sample_without_replacement(np.array([-np.inf, -np.inf]), u).tolist() == []


def test_of_the_drawn_candidates_the_best_go_on(tiny, monkeypatch):
    """In whatever order they are drawn; and a hypothesis must be among the best num_beams of them."""
    scores = np.log([[0.1, 0.4, 0.3, 0.2]])
    for end, ended, going in ((3, [], [1, 2]), (2, [(2,)], [1, 3]), (0, [], [1, 2])):
        settings = {"num_beams": 2, "max_new_tokens": 5, "eos_token_id": end}
        request = prepare(tiny, [[1]], None, None, (), None, settings)
        for drawn in ([3, 0, 1, 2], [0, 1, 3, 2], [2, 3, 1, 0]):
            monkeypatch.setattr(beam, "sample_without_replacement", lambda totals, u, drawn=drawn: np.array(drawn))
            search = beam.Search(request, 5, "length", [beam.Hypothesis(0.0)], [])
            assert search.advance(scores, scores, np.zeros(4)) == ([0, 0], going)
            assert [row.tokens for row in search.ended] == ended


def test_enough_candidates_for_all_beams_to_go_on(tiny):
    """Both beams find all eos tokens best, and both go on."""
    request = prepare(
        tiny, [[1]], None, None, (), None, {"num_beams": 2, "max_new_tokens": 5, "eos_token_id": [0, 1, 2]}
    )  # fmt: skip
    search = beam.Search(request, 5, "length", [beam.Hypothesis(-0.1), beam.Hypothesis(-0.2)], [])
    scores = np.log([[0.3, 0.3, 0.3, 0.1]] * 2)
    assert search.advance(scores, scores, None) == ([0, 1], [3, 3])
    assert len(search.ended) == 2


def test_sampled_beams_depend_on_the_seed_alone():
    model = make(block_size=32)
    options = {"num_beams": 3, "num_return_sequences": 2, "temperature": 1.5, "top_k": 6, "eos_token_id": 3}
    whole = model.generate(PROMPTS, 8, seed=1, **options)
    np.testing.assert_array_equal(model.generate(PROMPTS, 8, seed=1, **options), whole)
    assert model.generate(PROMPTS, 8, seed=2, **options).tolist() != whole.tolist()
    part = model.generate(PROMPTS[:2], 8, seed=1, **options)
    np.testing.assert_array_equal(part, whole[:4, : part.shape[1]])
    seeded = model.generate(PROMPTS, 8, seed=[9, 8, 7, 6, 5], **options)
    alone = model.generate(PROMPTS[3:4], 8, seed=6, **options)
    np.testing.assert_array_equal(alone, seeded[6:8, : alone.shape[1]])


def test_candidates_are_drawn_without_replacement(tiny):
    """The first two of four: each pair as often as in an urn without replacement."""
    p = np.exp(next_log_probs(tiny, [1]))
    n = 3000
    counts = np.zeros((4, 4))
    for u in np.random.default_rng(0).random((n, 2)):
        a, b = sorted(beam.sample_without_replacement(np.log(p), u).tolist())
        counts[a, b] += 1
    expected = n * p[:, None] * p * (1 / (1 - p[:, None]) + 1 / (1 - p))
    pairs = np.triu_indices(4, 1)
    chi_square = ((counts[pairs] - expected[pairs]) ** 2 / expected[pairs]).sum()
    assert chi_square < 20.5  # five degrees of freedom: 1 in 1000
