"""Greedy decoding against transformers' generate, token for token: options, padding, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import (
    generate_theirs,
    load_theirs,
    make_ours,
    pad_left,
    torch,
)
from tests.generation.side_by_side import BLOCK, EQUAL, ROWS, V, check

# Greedy -----------------------------------------------------------------------------------------------

GREEDY: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": [0, 3, 17], "begin_suppress_tokens": [5, 11]},
    {"bad_words_ids": [[4], [7, 7], [9, 1, 2]], "repetition_penalty": 1.2},
    {"begin_suppress_tokens": [2, 5, 8, 11]},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 6, "eos_token_id": 12},
]


@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_greedy(pair: Any, options: dict[str, Any]) -> None:
    check(pair, EQUAL, max_new_tokens=25, **options)
    check(pair, EQUAL[:, :1], max_new_tokens=25, **options)
    check(pair, EQUAL[:1], max_length=30, **options)


@pytest.mark.parametrize("options", GREEDY[:3], ids=str)
def test_greedy_with_padding_on_the_left(pair: Any, options: dict[str, Any]) -> None:
    check(pair, ROWS, max_new_tokens=25, **options)


def ends(pair: Any, rows: Any, count: int) -> list[int]:
    """Ids that greedy choice comes to, at different times in different rows."""
    new = check(pair, rows, max_new_tokens=20, repetition_penalty=1.4)
    times = {token: {int(row.tolist().index(token)) for row in new if token in row} for token in range(V)}
    return sorted(times, key=lambda token: -len(times[token]))[:count]


@pytest.mark.parametrize("rows", [ROWS, EQUAL.tolist()], ids=["padded", "equal"])
@pytest.mark.parametrize("count", [1, 2])
def test_rows_that_end_at_different_times(pair: Any, rows: Any, count: int) -> None:
    eos = ends(pair, rows, count)
    for options in ({}, {"min_new_tokens": 4}, {"min_new_tokens": 20}):
        new = check(pair, rows, max_new_tokens=20, repetition_penalty=1.4, eos_token_id=eos, **options)
        if not options:
            lengths = (new == eos[0]).argmax(axis=1)
            assert len(set(lengths)) > 1, "the rows were meant to end at different times"
    check(pair, EQUAL, max_length=24, min_length=12, repetition_penalty=1.4, eos_token_id=eos)
    for least in (1, 6):  # new tokens win over lengths, on both sides
        check(
            pair, EQUAL, max_new_tokens=15, max_length=17, min_new_tokens=least, min_length=16, eos_token_id=eos,
            repetition_penalty=1.4,
        )  # fmt: skip


def test_our_files_generate_the_same(tmp_path: Path) -> None:
    for bias in (True, False):
        ours = make_ours(seed=2, scale=0.3, bias=bias)
        ours.save_pretrained(tmp_path / str(bias))
        check((ours, load_theirs(tmp_path / str(bias))), [row[:4] for row in ROWS], max_new_tokens=15)


# Padding without a mask ---------------------------------------------------------------------------------

LEFT = [[0, 0, 7, 8], [5, 6, 7, 8], [0, 1, 2, 3]]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("padding", "eos"), [(0, None), (0, 30), (0, [30, 29]), (0, 0), (0, [30, 0]), (None, None), (25, None)]
)
def test_padding_that_is_inferred(pair: Any, padding: int | None, eos: Any, num_beams: int) -> None:
    """From pad_token_id, where it is given and is no eos token; one text alone is no exception."""
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": num_beams, "eos_token_id": eos}
    for table in (LEFT, LEFT[:1]):
        found = pair[0].generate(table, do_sample=False, pad_token_id=padding, return_details=True, **options)
        ids = torch.tensor(table)
        wanted = pair[1].generate(ids, do_sample=False, pad_token_id=padding, **options).numpy()
        own = np.arange(found.sequences.shape[1]) < 4 + found.lengths[:, None]  # what pads the end differs by design
        np.testing.assert_array_equal(found.sequences[own], wanted[:, : found.sequences.shape[1]][own])


def test_top_p_of_0_keeps_the_best_token(pair: Any) -> None:
    prompt = np.array([[3, 7, 7]])
    wanted = generate_theirs(pair[1], prompt, do_sample=True, top_p=0.0, max_new_tokens=6).numpy()
    np.testing.assert_array_equal(pair[0].generate(prompt, max_new_tokens=6, top_p=0, seed=0), wanted)


# Lengths on purpose -----------------------------------------------------------------------------------


def test_on_purpose_lengths_count_a_rows_own_tokens(pair: Any) -> None:
    """max_length and min_length of a padded batch: theirs count the padding too, ours give what the row gets alone."""
    ids, mask = pad_left(ROWS, 30)  # lengths 5, 1, 9, 3
    found = pair[0].generate(
        ids, attention_mask=mask, do_sample=False, max_length=12, pad_token_id=30, return_details=True
    )
    assert found.lengths.tolist() == [7, 11, 3, 9]
    for row, ids_alone, length in zip(found.sequences, ROWS, found.lengths, strict=True):
        alone = generate_theirs(pair[1], [ids_alone], max_length=12).numpy()[0]
        np.testing.assert_array_equal(row[ids.shape[1] :][:length], alone[len(ids_alone) :])
    assert generate_theirs(pair[1], ids, mask, max_length=12, pad_token_id=30).shape == (4, 12)  # 3 new for each


def test_on_purpose_the_window_slides_past_the_block(pair: Any) -> None:
    """Beyond the positions it has, theirs fails; ours slides the window, or stops where theirs could still go."""
    options: dict[str, Any] = {"max_new_tokens": BLOCK, "pad_token_id": 30}
    with pytest.raises(IndexError):
        generate_theirs(pair[1], EQUAL, **options)
    stopped = pair[0].generate(EQUAL, do_sample=False, overflow="stop", **options)
    np.testing.assert_array_equal(stopped, generate_theirs(pair[1], EQUAL, max_length=BLOCK, pad_token_id=30))
    slid = pair[0].generate(EQUAL, do_sample=False, **options)
    np.testing.assert_array_equal(slid[:, :BLOCK], stopped)
    for end in (BLOCK, BLOCK + 3):  # each further token is theirs for the window before it
        with torch.no_grad():
            logits = pair[1](torch.tensor(slid[:, end - BLOCK : end])).logits[:, -1].numpy()
        np.testing.assert_array_equal(slid[:, end], logits.argmax(axis=1))


def test_without_a_length_both_make_twenty_tokens(pair: Any) -> None:
    with pytest.warns(UserWarning, match="default"):
        assert check(pair, EQUAL).shape == (4, 20)
