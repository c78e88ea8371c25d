"""k-fold cross-validation: every text is tested once, equal texts together, labels spread evenly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt import UsageError
from tinygpt.data.folds import folds


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=12, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_every_text_is_tested_once_and_never_trained_on_then(texts: list[str], k: int, seed: int) -> None:
    texts = [*texts, *"abcdefghijkl"]
    parts = folds(texts, k, seed=seed)
    assert len(parts) == k
    assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(len(texts)))
    for train, test in parts:
        assert sorted([*train, *test]) == list(range(len(texts)))
        assert not {texts[i] for i in train} & {texts[i] for i in test}
        assert len(test)


def test_white_space_makes_no_difference() -> None:
    texts = ["a b", "a  b", " a b\n", "c", "d", "e"]
    for train, _ in folds(texts, 4):
        assert len({0, 1, 2} & set(train.tolist())) in (0, 3)


def test_each_fold_has_its_share_of_rows_and_of_each_label() -> None:
    labels = [0] * 80 + [1] * 20
    for _, test in folds([str(i) for i in range(100)], 5, labels=labels):
        assert len(test) == 20
        assert sum(labels[i] for i in test) == 4


def test_a_text_repeated_often_takes_no_label_from_its_fold() -> None:
    labels = [0] * 60 + [1] * 25
    for _, test in folds(["same"] * 40 + [str(i) for i in range(45)], 5, labels=labels):
        assert sum(labels[i] for i in test) == 5


def test_the_seed_chooses() -> None:
    texts = [str(i) for i in range(20)]
    one, same, other = (folds(texts, 4, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0][1], [0, 4, 8, 12, 16])  # shuffled, not dealt in the order of the file


REFUSED: list[tuple[Any, str]] = [
    (lambda: folds(["a", "a", "b"], 3), "3 folds need at least 3 different texts, but there are only 2 in 3 rows"),
    (lambda: folds(["a", "b"], 1), "folds must be at least 2, not 1"),
    (lambda: folds(["a", "b"], 2.0), "folds must be a whole number"),  # type: ignore[arg-type]
    (lambda: folds(["a", "b"], 2, labels=[1]), "there are 2 texts, but 1 labels"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_mistake_gets_a_sentence(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()
