"""Long texts, whose words are encoded once each, give the ids that the library gives for the whole."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.tokenizers import BPETokenizer, word_cache
from tinygpt.tokenizers.word_cache import WordCache, awkward

pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")

TRAINING = "the quick brown fox's tail, they're 42 foxes; café 中文 2023 ½ \n\n  don't you_know <|endoftext|> " * 3
# Everything that the expression treats in a way of its own, drawn often.
TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("abé中 \n\t'sredvltm0½²Ⅷ٣_-,.\x1c\x1f\x85\xa0\u3000\u0301\u200b😀ªʰ\u2028\u00ad\U0001f6dc"),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(TRAINING, 330)


def whole(tokenizer: BPETokenizer, text: str) -> list[int]:
    return list(tokenizer._library.encode(text, add_special_tokens=False).ids)


@settings(deadline=None, max_examples=400)
@given(
    texts=st.lists(TEXT, max_size=4), chunk=st.integers(1, 30), new=st.sampled_from([0.0, 0.5]), many=st.integers(-1, 9)
)
def test_the_ids_are_those_of_the_library(
    tokenizer: BPETokenizer, texts: list[str], chunk: int, new: float, many: int
) -> None:
    cache = WordCache(tokenizer._library)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_cache, "_CHUNK", chunk)
        patch.setattr(word_cache, "_NEW", new)
        patch.setattr(word_cache, "_MANY", many)
        patch.setattr(word_cache, "_LONGEST_WORD", 5)
        patch.setattr(word_cache, "_MOST_WORDS", 12)
        for text in texts:
            assert cache.encode(text).tolist() == whole(tokenizer, text)


@pytest.mark.slow
def test_every_character_between_letters_and_digits(tokenizer: BPETokenizer) -> None:
    cache = WordCache(tokenizer._library)
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for begin in range(0, len(characters), 1 << 14):
        # A word of the cache for each: without the parts that the library would be given whole.
        easy = [c for c in characters[begin : begin + (1 << 14)] if not awkward().match(c)]
        text = "".join(f"a{c}b {c}1{c} " for c in easy)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(word_cache, "_MANY", 1 << 30)
            assert cache.encode(text).tolist() == whole(tokenizer, text)


def test_what_is_awkward() -> None:
    pattern = awkward()
    assert all(pattern.match(c) for c in "½²Ⅷ\x1c\x1f\U000e0fff")
    assert not any(pattern.match(c) for c in "aé中ж1٣ _\n\u3000😀\u0301")
    share = sum(pattern.match(chr(code)) is None for code in range(0x3000, 0xA000)) / 0x7000
    assert share > 0.9
    assert unicodedata.category("½") == "No"


def test_long_texts_take_this_way(tokenizer: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = WordCache.encode
    monkeypatch.setattr(WordCache, "encode", lambda self, text: seen.append(len(text)) or real(self, text))
    text = TRAINING * 150
    ids = tokenizer.encode(text)
    assert seen == [len(text)]
    np.testing.assert_array_equal(ids, whole(tokenizer, text))
    marked = tokenizer.with_tokens(["x>y"])  # a token that is found inside words
    text = "ax>yb " * 10_000
    np.testing.assert_array_equal(marked.encode(text), whole(marked, text))
    assert len(seen) == 1
