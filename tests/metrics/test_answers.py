"""Exact match and token F1: SQuAD's script on English, characters where a language has no spaces."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tinygpt import UsageError, metrics


def squad_normalized(text: str) -> str:
    """What SQuAD's evaluation does to an answer, written down again."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(found: str, right: str) -> float:
    a, b = squad_normalized(found).split(), squad_normalized(right).split()
    if not a or not b:
        return float(a == b)
    same = sum((Counter(a) & Counter(b)).values())
    if not same:
        return 0.0
    precision, recall = same / len(a), same / len(b)
    return 2 * precision * recall / (precision + recall)


def test_english_is_squads() -> None:
    rng = np.random.default_rng(0)
    pool = ["the", "The,", "a", "an", "cat", "Cat.", "sat!", "theatre", "1,000", "café", "it's", "“x”", "--", "U.S."]
    for _ in range(300):
        found, right = (" ".join(rng.choice(pool, rng.integers(0, 6))) for _ in range(2))
        assert metrics.normalize_answer(found) == squad_normalized(found)
        assert metrics.token_f1([found], [right]) == pytest.approx(squad_f1(found, right)), (found, right)
        assert metrics.exact_match([found], [right]) == (squad_normalized(found) == squad_normalized(right))


CHINESE = [
    ("北京", "北京", 1.0, 1.0),
    ("北京。", "北京", 1.0, 1.0),
    ("《红楼梦》", "红楼梦", 1.0, 1.0),
    ("北 京", "北京", 1.0, 1.0),
    ("北京市", "北京", 0.0, 2 * 2 / 5),
    ("上海", "北京", 0.0, 0.0),
    ("2008年8月8日", "2008年8月", 0.0, 2 * 4 / 10),
    ("3\uff5e5天", "3-5天", 1.0, 1.0),
    ("iPhone手机", "iphone 手机", 1.0, 1.0),
    ("天天", "天", 0.0, 2 / 3),
    ("", "北京", 0.0, 0.0),
    ("。", "", 1.0, 1.0),
    ("とうきょう", "とうきょうと", 0.0, 10 / 11),
]


@pytest.mark.parametrize(("found", "right", "exact", "f1"), CHINESE, ids=str)
def test_without_spaces_a_character_is_a_word(found: str, right: str, exact: float, f1: float) -> None:
    assert metrics.exact_match([found], [right]) == exact
    assert metrics.token_f1([found], [right]) == pytest.approx(f1)


def test_of_several_answers_the_best_counts() -> None:
    assert metrics.exact_match(["Paris", "Rome"], [["London", "paris"], "Milan"]) == 0.5
    assert metrics.token_f1(["in Paris"], [["London", "Paris"]]) == pytest.approx(2 / 3)


REFUSED: list[tuple[Any, str]] = [
    (lambda: metrics.token_f1(["a"], [[]]), "pair 0 must have at least one reference"),
    (lambda: metrics.token_f1(["a", 3], ["a", "b"]), "pair 1 must have texts, not 3"),
    (lambda: metrics.token_f1(["a"], [None]), "pair 0 must have texts, not None"),
    (lambda: metrics.exact_match([], []), "there is nothing to measure"),
    (lambda: metrics.exact_match("Paris", ["Paris"]), "predictions must be a list"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_mistake_gets_a_sentence(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()


def test_words_of_many_languages() -> None:
    assert metrics.words("The cat's  hat_2, CAFÉ!") == ["the", "cat", "s", "hat", "2", "café"]
    assert metrics.words("我爱iPhone 15。") == ["我", "爱", "iphone", "15"]
    assert metrics.words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert metrics.words("한국어 문장") == ["한국어", "문장"]
    assert metrics.words("ไทย") == list("ไทย")
    assert metrics.words("…。") == []
