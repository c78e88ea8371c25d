"""Tokens and beams that are drawn: their distribution is that of transformers' scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import (
    chi_square_p,
    generate_theirs,
    load_ours,
    log_softmax,
    make_theirs,
    torch,
)
from tests.generation.side_by_side import SMALL_V as V
from tests.generation.side_by_side import make_small_pair
from tinygpt import GPT


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """(ours, transformers'): one model."""
    return make_small_pair(tmp_path_factory.mktemp("model"))


DRAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.5, "top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.08, "temperature": 1.7},
    {"typical_p": 0.7},
    {"repetition_penalty": 2.0, "temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
    {"suppress_tokens": [1, 4], "no_repeat_ngram_size": 1},
]


def their_distribution(model: Any, prompt: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """(B, V) probabilities of the token after each prompt (B, T), from transformers' own processed scores."""
    settings = {"top_k": 0, "pad_token_id": 0} | options
    steps = generate_theirs(
        model, prompt, max_new_tokens=1, do_sample=True, return_dict_in_generate=True, output_scores=True, **settings
    )
    return np.exp(log_softmax(steps.scores[0].numpy()))


@pytest.mark.parametrize("options", DRAWS, ids=str)
def test_draws_follow_their_distribution(pair: Any, options: dict[str, Any]) -> None:
    """Pairs of tokens: the second is drawn from what the first has led to. 5000 of them, by a chi-square test."""
    prompt, count = np.array([[3, 7, 7]]), 5000
    first = their_distribution(pair[1], prompt, options)[0]  # (V,)
    longer = np.concatenate([prompt.repeat(V, axis=0), np.arange(V)[:, None]], axis=1)
    both = first[:, None] * their_distribution(pair[1], longer, options)  # (V, V)
    drawn = pair[0].generate(
        prompt, max_new_tokens=2, seed=11, num_return_sequences=count, return_details=True, **options
    )
    tokens = drawn.sequences[:, 3:]
    counts = np.bincount(tokens[:, 0] * V + tokens[:, 1], minlength=V * V).reshape(V, V)
    assert not counts[both == 0].any()
    assert chi_square_p(counts.ravel(), both.ravel() * count) > 1e-3
    # And exactly: what each was drawn with.
    found = drawn.processed_log_probs.sum(axis=1)
    np.testing.assert_allclose(found, np.log(both[tokens[:, 0], tokens[:, 1]]), rtol=0, atol=1e-4)


def test_draws_from_a_larger_vocabulary(tmp_path: Path) -> None:
    """Ours adds up probabilities block by block: here there are several blocks."""
    model = make_theirs(seed=4, scale=0.2, vocab_size=701, n_positions=8)
    wanted = their_distribution(model, np.array([[1, 2, 3]]), {"temperature": 1.3})[0] * 20_000
    drawn = load_ours(model, tmp_path).generate(
        [[1, 2, 3]], max_new_tokens=1, seed=3, num_return_sequences=20_000, temperature=1.3
    )
    assert chi_square_p(np.bincount(drawn[:, -1], minlength=701), wanted) > 1e-3


def test_the_chi_square_test_sees_a_wrong_temperature(pair: Any) -> None:
    prompt, count = np.array([[3, 7, 7]]), 5000
    wanted = their_distribution(pair[1], prompt, {"temperature": 1.2})[0] * count
    drawn = pair[0].generate(prompt, max_new_tokens=1, seed=11, num_return_sequences=count)
    assert chi_square_p(np.bincount(drawn[:, -1], minlength=V), wanted) < 1e-3


DRAWN_BEAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5, "top_p": 0.9, "eos_token_id": 5},
    {"top_k": 1},  # two tokens stay all the same, so that a beam can go on: all are drawn, and the outcome is one
    {"min_p": 1.0, "eos_token_id": [5, 6]},  # and here three
    {"top_k": 3},
]


@pytest.mark.parametrize("options", DRAWN_BEAMS, ids=str)
def test_beams_that_are_drawn_are_distributed_like_theirs(pair: Any, options: dict[str, Any]) -> None:
    """Two drawn beams, 1200 times on each side: the two counts of outcomes are from one distribution."""
    prompt, count = np.array([[3, 7, 7]]).repeat(1200, axis=0), 1200
    settings = {
        "max_new_tokens": 2, "do_sample": True, "num_beams": 2, "num_return_sequences": 2, "pad_token_id": 1,
    } | options  # fmt: skip
    torch.manual_seed(0)
    found = pair[0].generate(prompt, seed=5, **settings)[:, 3:]
    wanted = generate_theirs(pair[1], prompt, **({"top_k": 0} | settings))[:, 3:].numpy()
    ends = np.ravel(options.get("eos_token_id", []))
    for place in (0, 1):  # the better row of each prompt, and the other
        counts = np.zeros((2, V, V))
        for which, tokens in enumerate((found[place::2], wanted[place::2])):
            second = np.where(np.isin(tokens[:, 0], ends), 0, tokens[:, 1])  # what fills an ended row is no outcome
            np.add.at(counts[which], (tokens[:, 0], second), 1)
        seen = counts.sum(axis=0) >= 10
        a, b = (np.append(one[seen], one[~seen].sum()) for one in counts)
        assert a.sum() == b.sum() == count
        if len(a) == 2 and b[1] == a[1] == 0:  # one outcome, the same on both sides
            assert "top_k" in options or "min_p" in options
            continue
        assert len(a) > 3
        statistic = ((a - b) ** 2 / np.maximum(a + b, 1e-300)).sum()
        half = torch.tensor([(len(a) - 1) / 2, statistic / 2], dtype=torch.float64)
        assert float(torch.special.gammaincc(half[0], half[1])) > 1e-3
