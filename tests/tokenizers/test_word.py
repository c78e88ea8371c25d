"""The word tokenizer: texts of known words come back exactly, unknown ones are `<unk>` and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt import tokenizers
from tinygpt.errors import CheckpointError, RangeError, UsageError
from tinygpt.tokenizers import FILE_NAME, StreamDecoder, WordTokenizer

TEXT = "To be, or not to be:\n  that is the question. To be! Don't " * 2
TEXT += "\u6211\u7231 \u5317\u4eac\u3002\u00e9t\u00e9 \u3042\u3044 " * 2


def pieces(tokenizer: WordTokenizer, text: str) -> list[str]:
    return [tokenizer.decode([number]) for number in tokenizer.encode(text)]


def test_how_a_text_is_cut() -> None:
    tokenizer = WordTokenizer.train(TEXT, 1000)
    assert pieces(tokenizer, "To be, or not to be:\n") == ["To", "be", ",", "or", "not", "to", "be", ":", "\n"]
    assert pieces(tokenizer, "To  be ,or") == ["To", " ", " ", "be", " ", ",", "", "or"]
    assert pieces(tokenizer, " To\n be ") == [" ", "To", "\n", " ", "be", " "]
    assert pieces(tokenizer, "Don't\u6211\u7231 \u5317\u4eac\u3002") == [
        "Don't", "\u6211", "\u7231", " ", "\u5317", "\u4eac", "\u3002",
    ]  # fmt: skip


def test_an_unknown_word_is_lost_and_counted() -> None:
    tokenizer = WordTokenizer.train("a b a b c", 1000)  # c occurs once
    ids = tokenizer.encode("a c b zebra")
    assert tokenizer.decode(ids) == "a <unk> b <unk>"
    assert tokenizer.unknown_count(ids) == 2
    assert tokenizer.unknown_count(tokenizer.encode("a b")) == 0
    assert WordTokenizer.train("a b a b c", 1000, min_frequency=1).decode(tokenizer.encode("a b")) == "a b"


def test_the_most_frequent_words_are_known() -> None:
    tokenizer = WordTokenizer.train(["x y y z z z", " z w w w w w"], 5)
    assert tokenizer.words == ["w", "z"]
    assert tokenizer.vocab_size == 5
    assert WordTokenizer.train("b b,a a,b b,a", 6).words == ["b", ",", "a"]  # four, three and three times


@given(text=st.text(st.sampled_from("ab cD'\u2019,.\n\t\u00a0\u3000\u6211\u7231\u3002\u3042\u00e9\u03010_-()")))
def test_a_text_of_known_words_comes_back(text: str) -> None:
    tokenizer = WordTokenizer.train(f"{text} {text} x x", 10_000, min_frequency=1)
    ids = tokenizer.encode(text)
    if tokenizer.unknown_count(ids) == 0:
        assert tokenizer.decode(ids) == text
    decoder = StreamDecoder(tokenizer)
    assert "".join(decoder.feed(number) for number in ids) + decoder.finish() == tokenizer.decode(ids)
    for size in (1, 3):
        split = [text[begin : begin + size] for begin in range(0, len(text), size)]
        parts = [tokenizer.encode(part) for part in tokenizer.whole_pieces(split)]
        assert np.concatenate([np.empty(0, np.int64), *parts]).tolist() == ids.tolist()


def test_a_text_in_pieces_has_the_same_ids() -> None:
    """The space before a word is expected only if the token before it is known, so texts are cut at line breaks."""
    tokenizer = WordTokenizer.train(TEXT, 1000)
    for size in (1, 3, 20):
        parts = [TEXT[begin : begin + size] for begin in range(0, len(TEXT), size)]
        found = [tokenizer.encode(part) for part in tokenizer.whole_pieces(parts)]
        assert len(found) > 1
        assert np.concatenate(found).tolist() == tokenizer.encode(TEXT).tolist()


def test_most_random_texts_have_no_unknown_words() -> None:
    """Or the test above would test nothing."""
    tokenizer = WordTokenizer.train(f"{TEXT} {TEXT} x", 10_000, min_frequency=1)
    assert tokenizer.unknown_count(tokenizer.encode(TEXT)) == 0
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    for tokenizer in (WordTokenizer.train(TEXT, 20), WordTokenizer(["a"], end_token=True)):
        tokenizer.save(tmp_path)
        found = tokenizers.load(tmp_path)
        assert isinstance(found, WordTokenizer)
        assert found == tokenizer
        assert found.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id == 4
    assert tokenizer.decode([3, 4]) == "a"
    with pytest.raises(RangeError, match="ids go from 0 to 4"):
        tokenizer.decode([5])
    (tmp_path / FILE_NAME).write_text('{"type": "word", "words": ["a", "a"]}')
    with pytest.raises(CheckpointError, match="needs distinct words"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "size", "words"),
    [
        ("a a", 3, "vocab_size must be at least 4"),
        ("a b", 9, "has no word that occurs 2 times"),
        ("", 9, "has no word that occurs 2 times"),
        ("a\ud800", 9, "half of a surrogate pair"),
    ],
)
def test_mistakes(text: str, size: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        WordTokenizer.train(text, size)
