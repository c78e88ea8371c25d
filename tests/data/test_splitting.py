"""Rows for training and rows for validation: equal texts on one side, each label in proportion."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt import UsageError
from tinygpt.data.splitting import digest_of, shares, split_rows


@given(keys=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), seed=st.integers(0, 5))
def test_equal_keys_are_on_one_side(keys: list[str], seed: int) -> None:
    keys = [f" {key}\n" if i % 2 else key for i, key in enumerate(keys)]
    if len({key.strip() for key in keys}) < 2:
        with pytest.raises(UsageError, match=r"fewer than two different texts or prompts.*--valid FILE"):
            split_rows(keys, 0.25, seed)
        return
    train, validation = split_rows(keys, 0.25, seed)
    assert sorted(train + validation) == list(range(len(keys)))
    assert train
    assert validation
    assert not {keys[i].strip() for i in train} & {keys[i].strip() for i in validation}
    assert split_rows(keys, 0.25, seed) == (train, validation)


def test_the_split_has_about_its_fraction() -> None:
    _, validation = split_rows([str(i) for i in range(1000)], 0.1, 0)
    assert len(validation) == 100
    assert split_rows([str(i) for i in range(1000)], 0.1, 1)[1] != validation
    keys = ["same"] * 50 + [
        str(i) for i in range(50)
    ]  # a large group is not torn, and doesn't fill the validation part
    assert len(split_rows(keys, 0.1, 0)[1]) == 10


@pytest.mark.parametrize("rare", [2, 5, 15])
def test_the_validation_part_of_a_classifier_has_two_labels(rare: int) -> None:
    """Chance alone would give it one label in many of these draws, and all rows of the rare one in some."""
    keys = [str(i) for i in range(30)]
    labels = [int(i < rare) for i in range(30)]
    unfair = 0
    for seed in range(40):
        unfair += any({labels[i] for i in part} != {0, 1} for part in split_rows(keys, 0.1, seed))
        train, validation = split_rows(keys, 0.1, seed, labels)
        assert sorted(train + validation) == list(range(30))
        assert len(validation) == 3
        for part in (train, validation):
            assert {labels[i] for i in part} == {0, 1}
    assert unfair


@given(
    counts=st.lists(st.integers(2, 60), min_size=2, max_size=6),
    fraction=st.sampled_from([0.1, 0.2, 0.5]),
    seed=st.integers(0, 3),
)
def test_each_label_has_its_share(counts: list[int], fraction: float, seed: int) -> None:
    """Of different texts: to a row, unless a label would have none."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    _, validation = split_rows([str(i) for i in range(len(labels))], fraction, seed, labels)
    found, n = Counter(labels[i] for i in validation), len(labels)
    wanted = max(2, round(fraction * n))
    assert len(validation) == wanted
    lifted = sum(wanted * count < n for count in counts)  # labels whose share is less than a row
    for label, count in enumerate(counts):
        assert abs(found[label] - wanted * count / n) < 1 + lifted
        assert found[label] or wanted < len(counts)


@given(
    rows=st.lists(st.frozensets(st.sampled_from("abcd"), max_size=3), min_size=8, max_size=60), seed=st.integers(0, 3)
)
def test_rows_of_several_labels(rows: list[frozenset[str]], seed: int) -> None:
    train, validation = split_rows([str(i) for i in range(len(rows))], 0.25, seed, rows)
    assert sorted(train + validation) == list(range(len(rows)))
    assert 0 < len(validation) <= round(0.25 * len(rows))
    counts, found = (Counter(label for i in part for label in rows[i]) for part in (range(len(rows)), validation))
    assert all(found[label] < counts[label] for label in counts)


def test_several_labels_have_their_shares() -> None:
    """Two fifths of a row from it at most in the mean, where chance is two rows away."""
    rng = np.random.default_rng(0)
    chances = np.array([0.6, 0.3, 0.1, 0.05])
    rows = [frozenset(np.flatnonzero(rng.random(4) < chances).tolist()) for _ in range(200)]
    keys = [str(i) for i in range(200)]
    counts = np.array([sum(label in row for row in rows) for label in range(4)])

    def distance(labels: list[frozenset[int]] | None) -> float:
        found = []
        for seed in range(10):
            _, validation = split_rows(keys, 0.25, seed, labels)
            assert len(validation) == 50
            found.append([sum(label in rows[i] for i in validation) for label in range(4)])
        return float(np.abs(np.array(found) - 0.25 * counts).mean())

    assert distance(rows) < 0.5
    assert distance(None) > 1.5


def test_a_rare_label_among_several_is_on_both_sides() -> None:
    rows = [frozenset({"a", "b"} | ({"rare"} if i % 25 == 0 else set())) for i in range(100)]
    for seed in range(10):
        _, validation = split_rows([str(i) for i in range(100)], 0.1, seed, rows)
        assert len(validation) == 10
        assert sum("rare" in rows[i] for i in validation) == 1
        assert len(split_rows([str(i) for i in range(100)], 0.1, seed)[1]) == 10


def test_shares() -> None:
    assert shares({"a": 50, "b": 50}, 10) == {"a": 5, "b": 5}
    assert shares({"a": 93, "b": 5, "c": 2}, 10) == {"a": 8, "b": 1, "c": 1}
    assert shares({"a": 5, "b": 7, "c": 6}, 2) == {"a": 0, "b": 1, "c": 1}
    assert shares({}, 3) == {}


def test_repeated_texts_count_by_their_rows() -> None:
    """Of 20 "a" and 20 "b", a quarter each, although half of the rows of "a" are one text."""
    keys = ["same"] * 10 + [str(i) for i in range(30)]
    labels = ["a"] * 20 + ["b"] * 20
    for seed in range(20):
        _, validation = split_rows(keys, 0.25, seed, labels)
        assert Counter(labels[i] for i in validation) == {"a": 5, "b": 5}


def test_a_label_of_one_text_is_learned_and_not_tested() -> None:
    keys, labels = [str(i) for i in range(30)] + ["x", "x "], [0, 1] * 15 + [2, 2]
    for seed in range(20):
        _, validation = split_rows(keys, 0.2, seed, labels)
        assert {labels[i] for i in validation} == {0, 1}


def test_a_digest_tells_rows_apart() -> None:
    assert digest_of([1, 2, 3]) == digest_of(range(1, 4)) != digest_of([1, 2])


@given(
    rows=st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 2)), min_size=2, max_size=30),
    fraction=st.sampled_from([0.05, 0.3, 0.999]),
    seed=st.integers(0, 3),
)
def test_a_split_by_labels_tears_no_text(rows: list[tuple[str, int]], fraction: float, seed: int) -> None:
    keys, labels = [key for key, _ in rows], [label for _, label in rows]
    if len(set(keys)) < 2:
        return
    train, validation = split_rows(keys, fraction, seed, labels)
    assert train
    assert validation
    assert sorted(train + validation) == list(range(len(rows)))
    assert not {keys[i] for i in train} & {keys[i] for i in validation}
