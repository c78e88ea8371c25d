"""What generation meets at its ends: rows without a next token, padding without a mask, options at their limits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.generation.helpers import PROMPTS, greedy_by_hand, make, next_log_probs
from tinygpt.errors import RangeError, ShapeError, UsageError
from tinygpt.generation import stream, stream_text
from tinygpt.tokenizers import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklm")
LONG = {"block_size": 32}


# Dead ends --------------------------------------------------------------------------------------------


def dead_after(counts: dict[int, int]) -> Any:
    """A processor: a row that begins with token t has no next one after counts[t] new ones."""

    def rule_out(rows: Any, logits: np.ndarray) -> np.ndarray:
        dead = [rows.new_tokens >= counts.get(int(ids[0]), 99) for ids in rows]
        return np.where(np.array(dead)[:, None], -np.inf, logits)

    return rule_out


@pytest.mark.parametrize("options", [{"do_sample": False}, {"seed": [3, 4, 5]}, {"seed": [3, 4, 5], "top_k": 3}])
def test_a_row_at_a_dead_end_ends_alone(options: dict[str, Any]) -> None:
    """The others get what they would get without it, and so does it until then; at the first token too."""
    model, prompts = make(**LONG), [[1, 2], [4, 5, 6], [7, 8]]
    free = model.generate(prompts, 6, pad_token_id=12, **options)
    out = model.generate(
        prompts, 6, pad_token_id=12, return_details=True, logits_processor=dead_after({1: 2, 7: 0}), **options
    )
    assert out.finish_reasons == ["dead_end", "length", "dead_end"]
    assert out.lengths.tolist() == [2, 6, 0]
    for row, length in enumerate(out.lengths):
        expected = [*free[row, : 3 + length], *[12] * (6 - length)]
        np.testing.assert_array_equal(out.sequences[row], expected)
        assert (out.log_probs[row, :length] < 0).all()
        assert not out.log_probs[row, length:].any()
        assert not out.processed_log_probs[row, length:].any()


def test_the_last_row_at_a_dead_end_ends_the_loop() -> None:
    model = make(**LONG)
    for options in ({"do_sample": False}, {"seed": 0}):
        out = model.generate([[1, 2]], 6, return_details=True, logits_processor=dead_after({1: 4}), **options)
        assert (out.sequences.shape, out.finish_reasons, out.lengths.tolist()) == ((1, 6), ["dead_end"], [4])
        assert out.log_probs.shape == (1, 4)
        steps = list(stream(model, [[1, 2]], 6, logits_processor=dead_after({1: 4}), **options))
        assert np.concatenate(steps).tolist() == out.sequences[0, 2:].tolist()
    repeated = model.generate([[3]], 300, no_repeat_ngram_size=1, seed=0, return_details=True)  # each token once
    assert sorted(repeated.sequences[0]) == list(range(13))
    assert repeated.finish_reasons == ["dead_end"]


def test_text_at_a_dead_end_is_complete() -> None:
    text = "".join(stream_text(make(**LONG), LETTERS, "d", 99, no_repeat_ngram_size=1, seed=0, stop_strings="dd"))
    assert sorted("d" + text) == list("abcdefghijklm")


@pytest.mark.parametrize("options", [{"do_sample": False}, {"seed": 0}])
def test_no_token_to_choose_for_any_row_is_a_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the options rule out every token from the start"):
        make().generate(PROMPTS, 3, suppress_tokens=list(range(13)), **options)


def test_beams_at_a_dead_end_are_what_is_found() -> None:
    model = make(**LONG)
    options: dict[str, Any] = {"do_sample": False, "num_beams": 3, "num_return_sequences": 3, "pad_token_id": 12}
    free = model.generate([[4, 5]], 6, return_details=True, **options)
    out = model.generate(
        [[1, 2], [4, 5]], 6, return_details=True, logits_processor=dead_after({1: 2}), **options
    )  # the other prompt's beams are as without it
    np.testing.assert_array_equal(out.sequences[3:], free.sequences)
    assert out.finish_reasons == ["dead_end"] * 3 + ["length"] * 3
    assert out.lengths.tolist() == [2] * 3 + [6] * 3
    shorter = model.generate([[1, 2]], 2, return_details=True, **options)
    np.testing.assert_array_equal(out.sequences[:3, :4], shorter.sequences)
    np.testing.assert_allclose(out.scores[:3], shorter.scores, rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="found only 0 distinct rows"):
        model.generate([[1, 2]], 6, logits_processor=dead_after({1: 0}), **options)


# Padding without a mask ---------------------------------------------------------------------------------

TABLE = np.array([[12, 12, 7, 8], [5, 6, 7, 8], [12, 1, 2, 3]])
ROWS = [[7, 8], [5, 6, 7, 8], [1, 2, 3]]
WAYS: list[dict[str, Any]] = [
    {"do_sample": False}, {"seed": 1, "top_k": 5}, {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_padding_is_seen_without_a_mask(options: dict[str, Any]) -> None:
    """The rows get what they get without padding; the table stays as it was given."""
    model = make(**LONG)
    expected = model.generate(ROWS, 5, pad_token_id=12, **options)
    for table in (TABLE, TABLE.tolist(), TABLE.astype(np.int32)):
        np.testing.assert_array_equal(model.generate(table, 5, pad_token_id=12, **options), expected)
    beyond = np.where(TABLE == 12, 50257, TABLE)  # a padding token that was added to the tokenizer alone
    found = model.generate(beyond, 5, pad_token_id=50257, **options)
    np.testing.assert_array_equal(np.where(found == 50257, 12, found)[:, :4], expected[:, :4])
    np.testing.assert_array_equal(found[:, 4:], expected[:, 4:])
    model.generation_config = {"pad_token_id": 12}
    np.testing.assert_array_equal(model.generate(TABLE, 5, **options), expected)


def test_what_is_no_padding() -> None:
    """No pad_token_id, one that is an eos token, a mask that says otherwise, a table of nothing else, one text."""
    model = make(**LONG)
    model.generation_config = {}
    as_tokens = [greedy_by_hand(model, row, 5) for row in TABLE.tolist()]
    for options in ({}, {"pad_token_id": 12, "attention_mask": np.ones_like(TABLE)}, {"pad_token_id": 11}):
        np.testing.assert_array_equal(model.generate(TABLE, 5, do_sample=False, **options), as_tokens)
    for eos in (12, [3, 12]):
        out = model.generate(TABLE, 1, do_sample=False, pad_token_id=12, eos_token_id=eos)
        np.testing.assert_array_equal(out[:, 4], np.array(as_tokens)[:, 4])
    alone = [greedy_by_hand(model, [12], 5)]
    np.testing.assert_array_equal(model.generate([[12]], 5, do_sample=False, pad_token_id=12), alone)
    text = "".join(stream_text(model, LETTERS, "ma", 5, do_sample=False, pad_token_id=12))
    assert text == LETTERS.decode(np.array(greedy_by_hand(model, [12, 0], 5)[2:]))


@pytest.mark.parametrize(
    ("idx", "error", "words"),
    [
        ([[12, 12], [1, 2]], ShapeError, "row 0 of idx is all pad_token_id=12: a prompt needs at least one token"),
        ([[1, 12, 2]], UsageError, "row 0 of idx has pad_token_id=12 after a token: pad on the left or"),
        ([[1, 2, 3], [12, 1, 12]], UsageError, "row 1 of idx has pad_token_id=12 after a token"),
        ([[12, 13]], RangeError, "ids must be in 0 .. 12"),
        ([[12.0, 1.0]], UsageError, "must be integers, not"),
        ([12, 1], ShapeError, "the shape"),
    ],
)
def test_padding_that_makes_no_sense_is_a_sentence(idx: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make().generate(idx, 2, pad_token_id=12)


# Options at their limits --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-300}, {"temperature": 5e-324}, {"temperature": 1e-40}, {"top_p": 0}, {"top_p": 1e-300},
     {"top_k": 1}, {"min_p": 1}, {"temperature": 1e-300, "top_k": 50, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9}],
    ids=str,
)  # fmt: skip
def test_what_leaves_one_token_is_greedy_without_a_warning(options: dict[str, Any], dtype: Any) -> None:
    model = make(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model.generate(PROMPTS, 5, seed=0, return_details=True, **options)
    np.testing.assert_array_equal(out.sequences, model.generate(PROMPTS, 5, do_sample=False))
    assert not out.processed_log_probs.any()


@pytest.mark.parametrize(
    "options", [{"temperature": 1e300}, {"top_k": 10**9}, {"top_p": 1}, {"min_p": 0}, {"typical_p": 1}], ids=str
)
def test_what_leaves_everything(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = make().generate(PROMPTS, 3, seed=0, return_details=True, **options)
    expected = make().generate(PROMPTS, 3, seed=0, return_details=True)
    if "temperature" in options:
        np.testing.assert_allclose(out.processed_log_probs, -np.log(13))
    else:
        np.testing.assert_array_equal(out.sequences, expected.sequences)


@pytest.mark.parametrize("penalty", [1e-30, 1e30])
def test_the_strongest_penalties_stay_numbers(penalty: float) -> None:
    """Below 1 a token is rewarded for being there: then nothing else comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = make(np.float32).generate(
            [[1, 2, 3]], 6, do_sample=False, repetition_penalty=penalty, return_details=True
        )
    assert np.isfinite(out.processed_log_probs).all()
    if penalty < 1:
        assert set(out.sequences[0]) <= {1, 2, 3}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": False}], ids=str)
def test_no_new_tokens(options: dict[str, Any]) -> None:
    out = make().generate(PROMPTS, 0, return_details=True, **options)
    np.testing.assert_array_equal(out.sequences, PROMPTS)
    assert out.lengths.tolist() == [0] * 5
    assert list(stream(make(), PROMPTS, 0)) == []


def test_more_beams_than_tokens() -> None:
    model = make()
    out = model.generate([[1, 2]], 1, do_sample=False, num_beams=50, num_return_sequences=13, return_details=True)
    order = np.argsort(-next_log_probs(model, [1, 2]), kind="stable")
    np.testing.assert_array_equal(out.sequences[:, 2], order)


def test_an_argument_of_the_model_that_generation_lacks_is_named() -> None:
    with pytest.raises(UsageError, match="there is no option 'position_ids'"):
        make().generate(PROMPTS, 1, position_ids=np.arange(4)[None])
