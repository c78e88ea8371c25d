"""Texts whose words are encoded once each give the ids that the library gives for the whole, in Python and compiled."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
import unicodedata
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.backends import get
from tinygpt.kernel import compiled_part, use_kernels
from tinygpt.tokenizers import BPETokenizer, word_cache
from tinygpt.tokenizers.word_cache import WordCache, awkward, classes, merges_of

library = pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")

TRAINING = "the quick brown fox's tail, they're 42 foxes; café 中文 2023 ½ \n\n  don't you_know <|endoftext|> " * 3
# Everything that the expression treats in a way of its own, drawn often.
TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("abé中 \n\t'sredvltm0½²Ⅷ٣_-,.\x1c\x1f\x85\xa0\u3000\u0301\u200b😀ªʰ\u2028\u00ad\U0001f6dc"),
    ),
    max_size=60,
)


needs_extension = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")
BODIES = ["reference", pytest.param("auto", marks=needs_extension)]


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(TRAINING, 330)


def made(tokenizer: BPETokenizer) -> WordCache:
    return WordCache(tokenizer._library, tokenizer._description["model"])


def whole(tokenizer: BPETokenizer, text: str) -> list[int]:
    return list(tokenizer._library.encode(text, add_special_tokens=False).ids)


@contextlib.contextmanager
def small(chunk: int, new: float, many: int) -> Iterator[None]:
    """Parts of a few characters, and every limit within reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_cache, "_CHUNK", chunk)
        patch.setattr(word_cache, "_BLOCK", 5 * chunk)
        patch.setattr(word_cache, "_NEW", new)
        patch.setattr(word_cache, "_MANY", many)
        patch.setattr(word_cache, "_LONGEST_WORD", 5)
        patch.setattr(word_cache, "_MOST_WORDS", 12)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("bodies", BODIES)
@settings(deadline=None, max_examples=400)
@given(
    texts=st.lists(TEXT, min_size=1, max_size=4),
    chunk=st.integers(1, 30),
    new=st.sampled_from([0.0, 0.5]),
    many=st.integers(-1, 9),
)
def test_the_ids_are_those_of_the_library(
    tokenizer: BPETokenizer, bodies: str, texts: list[str], chunk: int, new: float, many: int
) -> None:
    cache = made(tokenizer)
    wanted = [whole(tokenizer, text) for text in texts]
    with small(chunk, new, many), use_kernels(bodies):
        assert [cache.encode(text).tolist() for text in texts] == wanted
        assert [ids.tolist() for ids in cache.encode_batch(texts)] == wanted


def texts_of_few_characters() -> Iterator[str]:
    """Every text of up to four characters of these, and longer ones of many."""
    for length in (1, 2, 3, 4):
        yield from map("".join, itertools.product("a' \ns1é.", repeat=length))
    yield from (
        f"a'{first}{second}{third}" for first, second, third in itertools.product("stmdrevlx ", "evl'x", ["", "a"])
    )
    dice = random.Random(0)
    for _ in range(300):
        yield "".join(dice.choices("ab中 \n\t'srevldm0٣_-.\u3000\u0301😀", k=dice.randrange(5, 60)))
        yield "".join(chr(dice.choice((dice.randrange(0x3000), dice.randrange(0xD800), 32, 97))) for _ in range(20))


def test_the_words_are_those_of_the_library() -> None:
    """Whatever their ids are: by `re`, by its form for ASCII, and compiled."""
    for text in texts_of_few_characters():
        check_words(text)


def check_words(text: str) -> None:
    split = library.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    wanted = [span for _, span in split]
    if awkward().search(text) is None:
        assert [match.span() for match in word_cache._WORD.finditer(text)] == wanted
        if text.isascii():
            assert [match.span() for match in word_cache._ASCII_WORD.finditer(text)] == wanted
    if (make := compiled_part("WordTable")) is not None:
        table, ends = make(), np.array([len(text)])
        found, counts = table.find(text.encode("utf-32-le"), classes(text.isascii()), ends)
        assert (counts[0, 0] < 0) == (awkward().search(text) is not None)
        if counts[0, 0] >= 0:
            assert table.missing(ends, found, counts) == wanted
            assert counts[:, 0].tolist() == [len(wanted), len(wanted), 0]


@pytest.mark.parametrize("bodies", BODIES)
@pytest.mark.slow
def test_every_character_between_letters_and_digits(tokenizer: BPETokenizer, bodies: str) -> None:
    cache = made(tokenizer)
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for begin in range(0, len(characters), 1 << 14):
        # A word of the cache for each: without the parts that the library would be given whole.
        easy = [c for c in characters[begin : begin + (1 << 14)] if not awkward().match(c)]
        text = "".join(f"a{c}b {c}1{c} " for c in easy)
        with pytest.MonkeyPatch.context() as patch, use_kernels(bodies):
            patch.setattr(word_cache, "_MANY", 1 << 30)
            assert cache.encode(text).tolist() == whole(tokenizer, text)


@pytest.mark.slow
@needs_extension
@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(tail, id=name)
        for name, tail in {
            "nothing": "", "points": "." * 99, "blanks": " \n" * 40, "a long word": "a" * 99, "Chinese": "中" * 99,
            "a pause": "。", "half of 'll": "'l", "a special token": "<|endoftext|>", "an awkward character": "\x1c",
        }.items()
    ],
)  # fmt: skip
def test_the_ends_of_parts(tokenizer: BPETokenizer, tail: str) -> None:
    """Texts whose parts end everywhere, on one thread and on several, each after another that left its words there."""
    text = "".join(f"{TRAINING[:index]}{tail}" for index in range(0, len(TRAINING), 7))
    wanted = whole(tokenizer, text)
    for count in (1, 3):
        cache, before = made(tokenizer), get("numpy").get_num_threads()
        try:
            get("numpy").set_num_threads(count)
            with small(40, 0.5, 1 << 30):
                assert cache.encode(text).tolist() == wanted
                assert cache.encode(text[5:]).tolist() == whole(tokenizer, text[5:])
        finally:
            get("numpy").set_num_threads(before)


@needs_extension
def test_words_are_merged_as_the_library_merges_them(tokenizer: BPETokenizer) -> None:
    """Merges in an order that no training gives, ties included, and a pair that is there twice: the last one counts."""
    letters, dice = list("abcd"), np.random.default_rng(0)
    for _ in range(20):
        description = {**tokenizer.config()["tokenizer"], "added_tokens": []}
        model = description["model"] = dict(description["model"])
        model["vocab"] = {token: number for number, token in enumerate(list(model["vocab"])[:256])}
        tokens, merges = list(letters), []
        for _ in range(30):
            left, right = (tokens[index] for index in dice.integers(len(tokens), size=2))
            merges.append([left, right])
            if left + right not in model["vocab"]:
                model["vocab"][left + right] = len(model["vocab"])
                tokens.append(left + right)
        model["merges"] = [*merges, *merges[:3]]
        other = BPETokenizer(description)
        text = " ".join("".join(letters[index] for index in dice.integers(4, size=n)) for n in [*range(1, 60)] * 3)
        assert made(other).encode(text).tolist() == whole(other, text)


@pytest.mark.parametrize("bodies", BODIES)
def test_no_word_reaches_into_the_next_text(tokenizer: BPETokenizer, bodies: str) -> None:
    texts = ["they'l", "l", "'", "s", "", " ", " a", "1", "2", "a", "b", "don'", "t", "\x1c", "x", "'r", "e", "'"]
    with use_kernels(bodies):
        found = made(tokenizer).encode_batch(texts)
        assert [ids.tolist() for ids in found] == [whole(tokenizer, text) for text in texts]
        assert [ids.tolist() for ids in tokenizer.batch_encode(texts)] == [whole(tokenizer, text) for text in texts]
        assert tokenizer.batch_encode([]) == []


@pytest.mark.parametrize("bodies", BODIES)
def test_many_words_of_one_length(tokenizer: BPETokenizer, bodies: str) -> None:
    """So many that their slots collide, and that the table grows."""
    text = " ".join(map("".join, itertools.product("abcdefgh", repeat=4)))
    cache, wanted = made(tokenizer), whole(tokenizer, text)
    with use_kernels(bodies):
        assert cache.encode(text).tolist() == wanted
        assert cache.encode(text).tolist() == wanted


def test_models_that_do_more_than_merge_are_left_to_the_library(tokenizer: BPETokenizer) -> None:
    model = tokenizer._description["model"]
    assert merges_of(model) is not None
    for key in ("dropout", "fuse_unk", "byte_fallback", "ignore_merges"):
        assert merges_of(model | {key: 0.1}) is None
    assert merges_of(model | {"vocab": {}}) is None
    word = "quickbrownfox"
    vocab = {token: number for number, token in enumerate([*(t for t in model["vocab"] if t != "<|endoftext|>"), word])}
    changed = {"model": model | {"vocab": vocab, "ignore_merges": True}, "added_tokens": []}
    whole_word = BPETokenizer(tokenizer.config()["tokenizer"] | changed)
    text = f"the {word} {word} " * 3000
    assert made(whole_word).encode(text).tolist() == whole(whole_word, text)


@pytest.mark.slow
@needs_extension
def test_several_python_threads_encode_at_once(tokenizer: BPETokenizer) -> None:
    cache, found = made(tokenizer), {}
    texts = [f"{TRAINING} word{index}x{index} " * 40 for index in range(24)]

    def work(first: int) -> None:
        for index in range(first, len(texts), 4):
            found[index] = cache.encode(texts[index]).tolist()

    with small(50, 0.5, 40):
        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[index] for index in range(len(texts))] == [whole(tokenizer, text) for text in texts]


@needs_extension
def test_the_table_refuses_what_it_can_not_merge(tokenizer: BPETokenizer) -> None:
    table = compiled_part("WordTable")()
    with pytest.raises(ValueError, match="needs its ids"):
        table.add(["word"], [None])
    with pytest.raises(TypeError):
        table.add(["word"], [["a"]])
    assert len(table) == 0
    merging = compiled_part("WordTable")(*merges_of(tokenizer._description["model"]))
    with pytest.raises(ValueError, match="needs its ids"):
        merging.add(["a" * 257], [None])
    ends = np.array([4])
    found, counts = merging.find("word".encode("utf-32-le"), classes(True), ends)
    with pytest.raises(ValueError, match="words without ids"):
        merging.copy(ends, found, counts, np.zeros(1, np.int64), np.empty(4, np.int64))


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
