"""Beam search against transformers' generate, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import (
    generate_theirs,
    load_ours,
    make_theirs,
    pad_left,
)
from tests.generation.side_by_side import BLOCK, EQUAL, ROWS, V


def check_beams(pair: Any, rows: Any, num_beams: int, padding: int = 30, **options: Any) -> None:
    ids, mask = pad_left([list(row) for row in rows], padding)
    settings = {"num_beams": num_beams, "num_return_sequences": num_beams, "pad_token_id": padding} | options
    wanted = generate_theirs(pair[1], ids, mask, return_dict_in_generate=True, output_scores=True, **settings)
    found = pair[0].generate(ids, attention_mask=mask, do_sample=False, return_details=True, **settings)
    np.testing.assert_array_equal(found.sequences, wanted.sequences.numpy())
    np.testing.assert_allclose(found.scores, wanted.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


PENALTIES = (-1.0, -0.2, 0.0, 0.6, 1.0, 2.0)
ROWS_END, EQUAL_END = [26, 11, 5], [8, 5]  # ids that beams of these rows come to, early and late


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("num_beams", [2, 3, 4, 5])
def test_beams(pair: Any, num_beams: int, early_stopping: bool | str) -> None:
    for length_penalty in PENALTIES:
        options: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        check_beams(pair, ROWS, num_beams, max_new_tokens=10, eos_token_id=ROWS_END, **options)
        check_beams(pair, EQUAL, num_beams, max_length=15, eos_token_id=EQUAL_END, **options)


@pytest.mark.parametrize(("rows", "eos"), [(ROWS, ROWS_END), (EQUAL.tolist(), EQUAL_END)], ids=["padded", "equal"])
def test_in_these_beams_the_options_matter(pair: Any, rows: Any, eos: list[int]) -> None:
    """Without that the test above would see nothing: hypotheses of many lengths, other outcomes for other options."""
    ids, mask = pad_left(rows, 30)
    outcomes, lengths = {}, set()
    for penalty in PENALTIES:
        for early_stopping in (False, True, "never"):
            found = pair[0].generate(
                ids, attention_mask=mask, do_sample=False, num_beams=4, num_return_sequences=4, max_new_tokens=10,
                pad_token_id=30, eos_token_id=eos, early_stopping=early_stopping, length_penalty=penalty,
                return_details=True,
            )  # fmt: skip
            outcomes[penalty, early_stopping] = found.sequences[:, ids.shape[1] :].tobytes()
            lengths.update(found.lengths.tolist())
    assert len(lengths) > 5
    assert len({outcomes[penalty, False] for penalty in PENALTIES}) > 2
    assert any(len({outcomes[penalty, how] for how in (False, True, "never")}) == 3 for penalty in PENALTIES)


BEAMS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 5, "eos_token_id": [8, 5, 26]},
    {"no_repeat_ngram_size": 2, "min_length": 5, "eos_token_id": 26},
    {"bad_words_ids": [[4], [8, 8], [8, 2], [26, 5]], "suppress_tokens": [9, 11], "eos_token_id": 18},
    {"begin_suppress_tokens": [5, 6], "eos_token_id": 5, "num_return_sequences": 1},
    {"eos_token_id": list(range(0, 14)), "num_return_sequences": 2},
]


@pytest.mark.parametrize("options", BEAMS, ids=str)
def test_beams_with_processors(pair: Any, options: dict[str, Any]) -> None:
    check_beams(pair, EQUAL, 3, max_new_tokens=12, **options)
    check_beams(pair, EQUAL[:, :1], 2, max_new_tokens=7, **options)


@pytest.mark.parametrize("seed", range(8))
def test_beams_of_other_models(seed: int, tmp_path: Path) -> None:
    """Random models, settings and prompts: flat and sharp distributions, small and larger vocabularies."""
    rng = np.random.default_rng(seed)
    vocabulary, num_beams = int(rng.integers(21, 60)), int(rng.integers(2, 6))
    model = make_theirs(seed=seed, scale=float(rng.uniform(0.1, 0.4)), vocab_size=vocabulary, n_positions=40)
    both = load_ours(model, tmp_path), model
    rows = [rng.integers(0, vocabulary, length).tolist() for length in rng.integers(1, 9, 3)]
    free = both[0].generate(
        rows, do_sample=False, num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=12, pad_token_id=0
    )[:, max(map(len, rows)) :]
    for _ in range(4):
        check_beams(
            both, rows, num_beams, padding=vocabulary - 1, max_new_tokens=int(rng.integers(1, 16)),
            length_penalty=float(rng.uniform(-1, 2)), early_stopping=[True, False, "never"][rng.integers(3)],
            eos_token_id=np.unique(rng.choice(free.ravel(), int(rng.integers(1, 4)))).tolist(),
            num_return_sequences=int(rng.integers(1, num_beams + 1)),
        )  # fmt: skip


def test_beams_that_improve_late_under_a_penalty_on_length(tmp_path: Path) -> None:
    """Poor hypotheses come first, a good beam ends later: "never" must not give it up."""
    model = make_theirs(seed=5, scale=0.7, vocab_size=V, n_positions=BLOCK)
    both = load_ours(model, tmp_path), model
    for eos in ([20, 19], [29, 20]):
        check_beams(both, ROWS, 2, max_new_tokens=20, eos_token_id=eos, length_penalty=-1.0, early_stopping="never")


def test_on_purpose_beams_that_do_not_exist_never_come_up(tmp_path: Path) -> None:
    """Three tokens and five beams: at first there are three rows to go on with, not five.

    Theirs fills up with rows of score -1e9, which are copies. Here all rows are different and have real scores.
    """
    model = make_theirs(vocab_size=3, n_positions=8)
    options: dict[str, Any] = {"num_beams": 5, "num_return_sequences": 3, "max_new_tokens": 1}
    ours = load_ours(model, tmp_path).generate([[0]], do_sample=False, return_details=True, **options)
    assert sorted(ours.sequences[:, 1].tolist()) == [0, 1, 2]
    assert (ours.scores > -50).all()
    theirs = generate_theirs(
        model, [[0]], return_dict_in_generate=True, output_scores=True, **(options | {"num_return_sequences": 5})
    )
    assert theirs.sequences_scores.numpy().min() < -1e8


def test_on_purpose_padding_is_the_padding_token_even_if_that_is_0(pair: Any) -> None:
    """transformers takes pad_token_id=0 in beam search for none, and fills with the first eos token."""
    options: dict[str, Any] = {
        "num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 10, "eos_token_id": EQUAL_END, "pad_token_id": 0,
    }  # fmt: skip
    mask = np.ones_like(EQUAL)  # it has zeros
    found = pair[0].generate(EQUAL, do_sample=False, attention_mask=mask, return_details=True, **options)
    wanted = generate_theirs(pair[1], EQUAL, **options).numpy()
    padding = np.arange(found.sequences.shape[1]) >= EQUAL.shape[1] + found.lengths[:, None]
    assert padding.any()
    np.testing.assert_array_equal(found.sequences[~padding], wanted[~padding])
    assert set(found.sequences[padding]) == {0}
    assert set(wanted[padding]) == {EQUAL_END[0]}
