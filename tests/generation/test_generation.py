"""The loop: seeds and batches, prompts of every form, where rows end, log-probabilities, the window."""

import math

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import PROMPTS, greedy_by_hand, log_softmax, make, next_log_probs, ragged
from tinygpt import UsageError
from tinygpt.generation import GenerationConfig, generate, stream
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer

SAMPLED = {"temperature": 1.3, "top_k": 9, "top_p": 0.95}
LONG = {"block_size": 32}  # room for everything


# Choosing -------------------------------------------------------------------------------------------


def test_greedy_takes_the_greatest_by_hand():
    model = make()
    want = [greedy_by_hand(model, ids, 7) for ids in PROMPTS]  # beyond the block of 6: the window slides
    for options in (
        {"temperature": 0},
        {"do_sample": False},
        {"top_k": 1, "seed": 3},
        {"temperature": 1e-9, "seed": 3},
    ):
        out = model.generate(PROMPTS, 7, **options)
        assert out.dtype == np.int64
        np.testing.assert_array_equal(out, want)


def test_a_seed_fixes_the_text_whatever_the_batch():
    model = make()
    whole = model.generate(PROMPTS, 12, seed=5, **SAMPLED)
    np.testing.assert_array_equal(whole, model.generate(PROMPTS, 12, seed=5, **SAMPLED))
    assert (whole != model.generate(PROMPTS, 12, seed=6, **SAMPLED)).any()
    for rows in (1, 2, 4):
        np.testing.assert_array_equal(model.generate(PROMPTS[:rows], 12, seed=5, **SAMPLED), whole[:rows])
    assert (whole[:, :4] == PROMPTS).all()
    assert ((whole >= 0) & (whole < 13)).all()


@pytest.mark.slow
def test_one_seed_for_each_prompt_reproduces_any_row_alone():
    model, seeds = make(), [5, 6, 5, 7, 2**64 - 1]
    whole = model.generate(PROMPTS, 70, seed=seeds, num_return_sequences=2, **SAMPLED)
    for b, seed in enumerate(seeds):
        alone = model.generate(PROMPTS[b : b + 1], 70, seed=seed, num_return_sequences=2, **SAMPLED)
        np.testing.assert_array_equal(alone, whole[2 * b : 2 * b + 2])
        np.testing.assert_array_equal(model.generate(PROMPTS[b : b + 1], 70, seed=seed, **SAMPLED), alone[:1])
    with pytest.raises(UsageError, match="one for each of the 5 prompts, not 2"):
        model.generate(PROMPTS, 3, seed=[1, 2])


def test_equal_prompts_get_different_samples():
    samples = make().generate(np.repeat(PROMPTS[:1], 4, axis=0), 12, seed=0)
    assert len({tuple(row) for row in samples.tolist()}) > 1
    np.testing.assert_array_equal(make().generate(PROMPTS[:1], 12, seed=0, num_return_sequences=4), samples)


def test_samples_of_a_prompt_are_neighbours():
    out = make().generate(PROMPTS, 3, seed=0, num_return_sequences=3)
    np.testing.assert_array_equal(out[:, :4], np.repeat(PROMPTS, 3, axis=0))


def test_without_a_seed_the_default_generator_decides():
    model = make()
    texts = []
    for seed in (1, 1, 2):
        tg.manual_seed(seed)
        texts.append([model.generate(PROMPTS, 8).tolist(), model.generate(PROMPTS, 8).tolist()])
    tg.manual_seed(0)
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0] != texts[0][1]  # the second call goes on, it does not repeat


def test_the_first_token_has_the_models_distribution():
    """Chi-square over the samples of one prompt: model, temperature and top_k together."""
    model, n = make(), 4000
    probabilities = np.exp(log_softmax(next_log_probs(model, PROMPTS[0]) / 0.7))
    probabilities[np.argsort(probabilities)[:7]] = 0  # 6 of 13 stay
    probabilities /= probabilities.sum()
    out = model.generate(PROMPTS[:1], 1, temperature=0.7, top_k=6, seed=1, num_return_sequences=n)[:, -1]
    counts = np.bincount(out, minlength=13)
    assert (counts[probabilities == 0] == 0).all()
    expected = n * probabilities[probabilities > 0]
    assert ((counts[probabilities > 0] - expected) ** 2 / expected).sum() < 20.5  # five degrees of freedom: 1 in 1000


def test_ids_beyond_the_real_vocabulary_are_never_chosen():
    model = make()
    free = model.generate(PROMPTS, 40, seed=0, temperature=3.0)[:, 4:]
    assert (free >= 9).any()
    for options in ({"vocab_size": 9}, {"tokenizer": CharTokenizer("abcdefghi")}, {"vocab_size": 9, "num_beams": 2}):
        assert (model.generate(PROMPTS, 40, seed=0, temperature=3.0, **options)[:, 4:] < 9).all()
    with pytest.raises(UsageError, match="the tokenizer has 256 ids, but the model only 13"):
        model.generate(PROMPTS, 2, tokenizer=ByteTokenizer())
    with pytest.raises(UsageError, match="vocab_size has 14 ids, but the model only 13"):
        model.generate(PROMPTS, 2, vocab_size=14)
    with pytest.raises(UsageError, match=r"tokenizer must be one of tinygpt\.tokenizers, not int"):
        model.generate(PROMPTS, 2, tokenizer=3)


def test_a_users_processor_sees_the_rows_and_decides():
    seen = []

    def force(rows, logits):
        seen.append((rows.new_tokens, [row.tolist() for row in rows], logits.dtype, logits.shape))
        with pytest.raises(ValueError, match="read-only"):
            rows[0][0] = 3
        forced = np.full_like(logits, -math.inf)
        forced[:, rows.new_tokens] = 0
        return forced

    out = make().generate([[1, 2], [3]], 3, logits_processor=[force], pad_token_id=0, seed=0)
    np.testing.assert_array_equal(out, [[1, 2, 0, 1, 2], [0, 3, 0, 1, 2]])
    assert seen[2] == (2, [[1, 2, 0, 1], [3, 0, 1]], np.float64, (2, 13))


def test_processors_act_in_the_loop():
    model = make(**LONG)
    out = model.generate(PROMPTS, 8, do_sample=False, no_repeat_ngram_size=1, suppress_tokens=[0])
    for row in out:
        assert len(set(row[4:]) | set(row[:4])) == 8 + len(set(row[:4]))
        assert 0 not in row[4:]
    plain = model.generate(PROMPTS, 8, do_sample=False)
    assert (model.generate(PROMPTS, 8, do_sample=False, repetition_penalty=50.0) != plain).any()


# Prompts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"seed": [3, 4, 5, 6], **SAMPLED}, {"num_beams": 3, "do_sample": False}],
)
def test_prompts_of_different_length_get_what_they_get_alone(options):
    model = make()
    out = model.generate(ragged(), 9, pad_token_id=12, **options)  # past the block at different steps
    for b, prompt in enumerate(ragged()):
        seed = {"seed": options["seed"][b]} if "seed" in options else {}
        alone = model.generate(prompt[None], 9, **{**options, **seed})[0]
        np.testing.assert_array_equal(out[b], [12] * (4 - len(prompt)) + alone.tolist())


def test_padding_with_a_mask():
    model = make()
    want = model.generate(ragged(), 5, pad_token_id=12, do_sample=False)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]])
    table = np.where(mask, want[:, :4], [[7], [7], [99], [7]])  # what stands at the padding does not matter
    out = model.generate(table, 5, attention_mask=mask, do_sample=False)
    np.testing.assert_array_equal(out[:, :4], table)
    np.testing.assert_array_equal(out[:, 4:], want[:, 4:])
    # padding on the right moves to the left
    right = [np.roll(row, -(4 - count)) for row, count in zip(table, mask.sum(axis=1), strict=True)]
    moved = model.generate(np.array(right), 5, attention_mask=np.sort(mask)[:, ::-1].tolist(), do_sample=False)
    np.testing.assert_array_equal(moved, out)
    np.testing.assert_array_equal(
        model.generate(PROMPTS, 3, attention_mask=np.ones((5, 4), bool), do_sample=False),
        model.generate(PROMPTS.tolist(), 3, do_sample=False),
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"idx": [1, 2]}, r"the shape \(batch, time\)"),
        ({"idx": [[]]}, "at least one token"),
        ({"idx": [[1], []]}, "at least one token"),
        ({"idx": [[0.5]]}, "not float64"),
        ({"idx": [[13] + [0] * 9]}, "vocab_size is 13"),  # even where the window no longer sees it
        ({"idx": [[1, 2], [13]]}, "vocab_size is 13"),
        ({"idx": [[1, 2], [3, [4]]]}, "differ in length"),
        ({"idx": [[1, 2], [3]]}, "give pad_token_id, the id to pad them with"),
        ({"attention_mask": [[1, 1]]}, r"must have equal shapes \(batch, time\), not \(5, 4\) and \(1, 2\)"),
        ({"idx": [[1, 2]], "attention_mask": [[1, 2]]}, "must contain only 1 for tokens and 0 for padding"),
        ({"idx": [[1, 2]], "attention_mask": [[0, 0]]}, "row 0 of attention_mask has no token"),
        ({"idx": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "row 0 of attention_mask has padding between tokens"),
        ({"idx": [[1, 13]], "attention_mask": [[1, 1]]}, "vocab_size is 13"),
        ({"idx": [[1.0, 2.0]], "attention_mask": [[1, 1]]}, "must be integers, not"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"seed": -1}, "a seed is an integer"),
        (
            {"max_new_tokens": None, "max_length": 4},
            "a prompt of 4 tokens leaves no room for new ones within max_length=4",
        ),
        ({"min_length": 8}, "requires at least 4 new tokens, but .* allows at most 3"),
        ({"max_new_tokens": None, "max_length": 5, "min_new_tokens": 3}, "at least 3 new tokens, .* at most 1"),
        ({"stop_strings": "a"}, "stop_strings need a tokenizer"),
        ({"stop_strings": "a", "tokenizer": CharTokenizer("ab")}, "give pad_token_id"),
        ({"logits_processor": [3]}, "logits_processor must be a list of functions"),
        ({"num_beams": 2}, "can't stream"),
    ],
)
def test_mistakes_get_a_sentence_before_the_first_token(arguments, words):
    with pytest.raises(UsageError, match=words):
        stream(make(), **({"idx": PROMPTS, "max_new_tokens": 3} | arguments))


def test_a_batch_without_rows():
    assert make().generate(np.zeros((0, 3), int), 4).shape == (0, 7)
    assert make().generate(np.zeros((0, 3), int), 4, num_beams=2, do_sample=False).shape == (0, 3)


# Where rows end -------------------------------------------------------------------------------------


def test_rows_end_at_eos_and_are_padded():
    model = make(**LONG)
    free = model.generate(PROMPTS, 12, seed=5, **SAMPLED)
    eos = [int(free[0, 6]), int(free[1, 9])]
    out = model.generate(PROMPTS, 12, seed=5, eos_token_id=eos, pad_token_id=13, return_details=True, **SAMPLED)
    for b in range(5):
        ends = np.flatnonzero(np.isin(free[b, 4:], eos))
        length = ends[0] + 1 if len(ends) else 12
        assert out.lengths[b] == length
        assert out.finish_reasons[b] == ("eos" if len(ends) else "length")
        width = out.sequences.shape[1] - 4
        np.testing.assert_array_equal(out.sequences[b, 4:], [*free[b, 4 : 4 + length], *[13] * (width - length)])
    assert out.sequences.shape[1] == 4 + out.lengths.max()
    assert set(out.finish_reasons) == {"eos", "length"}
    # without pad_token_id the first eos token is the padding
    np.testing.assert_array_equal(
        model.generate(PROMPTS, 12, seed=5, eos_token_id=eos, **SAMPLED),
        np.where(np.arange(out.sequences.shape[1]) - 4 < out.lengths[:, None], out.sequences, eos[0]),
    )


def test_all_rows_ended_ends_the_loop():
    model = make(**LONG)
    first = model.generate(PROMPTS[:1], 1, do_sample=False)[0, -1]
    assert model.generate(PROMPTS[:1], 10, do_sample=False, eos_token_id=int(first)).shape == (1, 5)


def test_minimum_lengths_hold_eos_back():
    model = make(**LONG)
    everything = list(range(12))  # all but id 12 end a row
    for options, lengths in (
        ({"min_new_tokens": 3}, [4] * 4),
        ({"min_length": 5}, [5 - 2 + 1, 5 - 4 + 1, 5 - 1 + 1, 5 - 3 + 1]),  # each row counts its own tokens
    ):
        out = model.generate(ragged(), 12, do_sample=False, eos_token_id=everything, return_details=True, **options)
        for row, length in enumerate(lengths):
            assert (out.sequences[row, 4 : 4 + length - 1] == 12).all()
            assert out.lengths[row] >= length


def test_maximum_lengths():
    model = make(**LONG)
    assert model.generate(PROMPTS, seed=0).shape == (5, 24)  # transformers' default: 20 new tokens
    assert model.generate(PROMPTS, seed=0, min_new_tokens=25).shape == (5, 29)
    assert model.generate(PROMPTS, seed=0, max_length=7).shape == (5, 7)
    assert model.generate(PROMPTS, 5, seed=0, max_length=7).shape == (5, 9)  # max_new_tokens wins
    np.testing.assert_array_equal(model.generate(PROMPTS, 0), PROMPTS)
    out = model.generate(ragged(), max_length=5, seed=0, pad_token_id=0, return_details=True)
    assert out.lengths.tolist() == [3, 1, 4, 2]
    assert out.finish_reasons == ["length"] * 4


def test_overflow_stops_or_slides():
    model = make()
    prompts = [PROMPTS[0], PROMPTS[1, :2]]
    slid = model.generate(prompts, 9, seed=1, pad_token_id=0)
    out = model.generate(prompts, 9, seed=1, pad_token_id=0, overflow="stop", return_details=True)
    assert out.lengths.tolist() == [2, 4]  # the block holds six
    assert out.finish_reasons == ["block", "block"]
    np.testing.assert_array_equal(out.sequences, [[*slid[0, :6], 0, 0], slid[1, :8]])
    short = model.generate(prompts, 1, seed=1, pad_token_id=0, overflow="stop", return_details=True)
    assert short.finish_reasons == ["length", "length"]
    exact = model.generate(PROMPTS, 2, overflow="stop", return_details=True)
    assert exact.finish_reasons == ["length"] * 5  # as many as were asked for
    full = np.concatenate([PROMPTS, PROMPTS], axis=1)
    nothing = model.generate(full[:, :6], 3, overflow="stop", return_details=True)
    np.testing.assert_array_equal(nothing.sequences, full[:, :6])
    assert (nothing.lengths.tolist(), nothing.finish_reasons) == ([0] * 5, ["block"] * 5)
    with pytest.raises(UsageError, match="a prompt of 8 tokens is longer than this model's block_size of 6"):
        model.generate(full, 3, overflow="stop")


def test_a_long_prompt_is_cut_to_the_window():
    model = make()
    long = np.concatenate([PROMPTS, PROMPTS], axis=1)  # 8 tokens for a block of 6
    out = model.generate(long, 3, seed=2)
    np.testing.assert_array_equal(out[:, :8], long)
    np.testing.assert_array_equal(out[:, 8:], model.generate(long[:, -6:], 3, seed=2)[:, 6:])


# What else is returned ------------------------------------------------------------------------------


def test_log_probabilities_of_the_chosen_tokens():
    model = make()
    out = model.generate(PROMPTS, 9, seed=2, return_details=True, eos_token_id=3, pad_token_id=13, **SAMPLED)
    assert out.scores is None
    for b in range(5):
        for t in range(out.log_probs.shape[1]):
            if t >= out.lengths[b]:
                assert out.log_probs[b, t] == out.processed_log_probs[b, t] == 0
                continue
            raw, token = next_log_probs(model, out.sequences[b, : 4 + t]), out.sequences[b, 4 + t]
            assert out.log_probs[b, t] == pytest.approx(raw[token], abs=1e-9)
            kept = np.sort(raw / 1.3)[-9:]
            if raw[token] / 1.3 > kept[4]:  # surely in what top_p leaves: more probable than before
                assert out.processed_log_probs[b, t] >= log_softmax(kept)[4] - 1e-9
    plain = model.generate(PROMPTS, 4, seed=2, return_details=True)
    np.testing.assert_allclose(plain.processed_log_probs, plain.log_probs, atol=1e-9)
    scaled = model.generate(PROMPTS, 1, seed=2, return_details=True, temperature=0.5)
    for b in range(5):
        want = log_softmax(next_log_probs(model, PROMPTS[b]) / 0.5)[scaled.sequences[b, -1]]
        assert scaled.processed_log_probs[b, 0] == pytest.approx(want, abs=1e-9)
    greedy = model.generate(PROMPTS, 1, do_sample=False, suppress_tokens=[0, 1], return_details=True)
    for b in range(5):
        raw = next_log_probs(model, PROMPTS[b])
        assert greedy.log_probs[b, 0] == pytest.approx(raw[2:].max(), abs=1e-9)
        assert greedy.processed_log_probs[b, 0] == pytest.approx(log_softmax(raw[2:]).max(), abs=1e-9)


def test_stream_yields_what_generate_returns():
    model = make()
    options = {"seed": 4, "eos_token_id": 3, "pad_token_id": 0, "num_return_sequences": 2}
    out = generate(model, ragged(), 9, **options)
    tokens = list(stream(model, ragged(), 9, **options))
    np.testing.assert_array_equal(np.stack(tokens, axis=1), out[:, 4:])
    assert list(stream(model, PROMPTS, 0)) == []
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    assert len(list(stream(model, PROMPTS, config=config))) == 3
