"""Tokenizers: every text comes back, streaming equals decoding, and every mistake gets its sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt import tokenizers
from tinygpt.errors import CheckpointError, DtypeError, RangeError, ShapeError, UsageError
from tinygpt.tokenizers import FILE_NAME, ByteTokenizer, CharTokenizer, StreamDecoder, UnknownCharacterError

# Any characters but lone surrogates, with those of two, three and four UTF-8 bytes drawn often.
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé€𝄞\ufeff\ufffd\0\n\r")))


@settings(deadline=None)
@given(TEXT)
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == list(text.encode("utf-8"))
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text


@settings(deadline=None)
@given(TEXT.filter(bool))
def test_characters_round_trip(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.shape == (len(text),)
    assert tokenizer.characters == "".join(sorted(set(text)))
    assert ids.tolist() == [tokenizer.characters.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert CharTokenizer.from_text(iter(text)) == tokenizer


@settings(deadline=None)
@given(TEXT, TEXT.filter(bool))
def test_policies_do_what_their_names_say(text: str, known: str) -> None:
    strict = CharTokenizer.from_text(known)
    skipping = CharTokenizer.from_text(known, unknown="skip")
    replacing = CharTokenizer.from_text(known, unknown="replace", replacement=known[0])
    unknown = [i for i, character in enumerate(text) if character not in known]
    if unknown:
        with pytest.raises(UnknownCharacterError) as caught:
            strict.encode(text)
        assert (caught.value.character, caught.value.position) == (text[unknown[0]], unknown[0])
    else:
        assert strict.decode(strict.encode(text)) == text
    assert skipping.decode(skipping.encode(text)) == "".join(c for c in text if c in known)
    assert replacing.decode(replacing.encode(text)) == "".join(c if c in known else known[0] for c in text)


def test_unknown_character_sentence() -> None:
    with pytest.raises(RangeError, match=r"'é' \(U\+00E9\) at position 3 of the text .* unknown='skip'") as caught:
        CharTokenizer("acf").encode("café")
    assert not isinstance(caught.value, KeyError)
    copy = pickle.loads(pickle.dumps(caught.value))  # worker processes send errors home
    assert (copy.position, str(copy)) == (3, str(caught.value))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CharTokenizer(""), "empty"),
        (lambda: CharTokenizer.from_text(""), "empty"),
        (lambda: CharTokenizer("aa"), "distinct"),
        (lambda: CharTokenizer("ab", unknown="ignore"), "one of error, skip, replace"),
        (lambda: CharTokenizer("ab", unknown="replace"), "one character of the vocabulary, not None"),
        (lambda: CharTokenizer("ab", unknown="replace", replacement="c"), "not 'c'"),
        (lambda: CharTokenizer("ab", unknown="replace", replacement="ab"), "not 'ab'"),
        (lambda: CharTokenizer("ab", replacement="a"), "only with unknown='replace'"),
        (lambda: CharTokenizer("ab").encode(b"ab"), "text of type str, not bytes"),
        (lambda: ByteTokenizer().encode("a\ud800"), r"position 1 \(U\+D800\)"),
        (lambda: CharTokenizer("ab").encode("a\ud800"), r"position 1 \(U\+D800\)"),
    ],
)
def test_mistakes_get_a_sentence(make, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make()


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abc")], ids=["byte", "character"])
def test_bad_ids(tokenizer: tokenizers.Tokenizer) -> None:
    size = tokenizer.vocab_size
    with pytest.raises(RangeError, match=f"id {size} at position 1, .* 0 to {size - 1}"):
        tokenizer.decode([0, size])
    with pytest.raises(IndexError, match="id -1 at position 0"):
        tokenizer.decode(np.array([-1]))
    with pytest.raises(DtypeError, match="float64"):
        tokenizer.decode([0.0])
    with pytest.raises(ShapeError, match="batch_decode"):
        tokenizer.decode([[0]])
    assert tokenizer.decode([]) == ""


def test_batch_decode() -> None:
    tokenizer = CharTokenizer("abc")
    assert tokenizer.batch_decode(np.array([[0, 1], [2, 2]])) == ["ab", "cc"]
    assert tokenizer.batch_decode([[0], [], [2, 1]], skip_special_tokens=True) == ["a", "", "cb"]


def test_batch_decode_skips_special_tokens() -> None:
    class WithMark(CharTokenizer):
        special_ids = frozenset({2})

    tokenizer = WithMark("ab$")
    assert tokenizer.batch_decode([[0, 2, 1], [2]], skip_special_tokens=True) == ["ab", ""]
    assert tokenizer.batch_decode([[0, 2, 1]]) == ["a$b"]


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 5)))
def test_streaming_equals_decoding(data: bytes, sizes: list[int]) -> None:
    """For any bytes, valid UTF-8 or not, and however the ids are cut into pieces."""
    tokenizer = ByteTokenizer()
    decoder = StreamDecoder(tokenizer)
    ids, pieces = np.frombuffer(data, np.uint8), []
    for size in sizes:
        pieces.append(decoder.feed(ids[:size]))
        ids = ids[size:]
    pieces += [decoder.feed(int(i)) for i in ids]
    pieces.append(decoder.finish())
    assert "".join(pieces) == tokenizer.decode(np.frombuffer(data, np.uint8))


@settings(deadline=None)
@given(TEXT)
def test_streaming_gives_whole_characters_at_once(text: str) -> None:
    decoder = StreamDecoder(ByteTokenizer())
    for character in text:
        *first, last = character.encode("utf-8")
        assert [decoder.feed(byte) for byte in first] == [""] * len(first)
        assert decoder.feed(last) == character
    assert decoder.finish() == ""


def test_streaming_characters_and_an_unfinished_end() -> None:
    tokenizer = CharTokenizer("a€𝄞")
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(i) for i in (2, 0, 1)] == ["𝄞", "a", "€"]
    decoder = StreamDecoder(ByteTokenizer())
    assert decoder.feed(0xE2) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.feed(ord("a")) == "a"  # as good as new


@settings(deadline=None)
@given(TEXT.filter(bool), st.sampled_from(["error", "skip", "replace"]))
def test_save_and_load(tmp_path_factory, text: str, unknown: str) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    replacement = text[0] if unknown == "replace" else None
    tokenizer = CharTokenizer.from_text(text, unknown, replacement)
    tokenizer.save(folder)
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    loaded = tokenizers.load(folder)
    assert isinstance(loaded, CharTokenizer)
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert CharTokenizer.load(folder) == tokenizer
    assert eval(repr(loaded)) == tokenizer


def test_save_and_load_bytes(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    assert tokenizers.load(tmp_path) == ByteTokenizer()
    assert ByteTokenizer() != CharTokenizer("a")
    assert ByteTokenizer() != "byte"
    with pytest.raises(CheckpointError, match="type 'byte', not 'character'"):
        CharTokenizer.load(tmp_path)


def test_every_cut_of_the_file_is_reported(tmp_path: Path) -> None:
    CharTokenizer("aé€𝄞").save(tmp_path)
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    for length in range(len(content) - 2):  # without the last brace
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ([], "no tokenizer type"),
        ({}, "no tokenizer type"),
        ({"type": "bpe"}, "type 'bpe'; this version of tinygpt knows byte, character"),
        ({"type": "character"}, "not a valid 'character' tokenizer"),
        ({"type": "character", "characters": 3, "unknown": "error", "replacement": None}, "not int"),
        ({"type": "character", "characters": "aa", "unknown": "error", "replacement": None}, "distinct"),
        ({"type": "character", "characters": "a", "unknown": [], "replacement": None}, "one of error"),
    ],
)
def test_a_wrong_file_is_reported(tmp_path: Path, config: object, sentence: str) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=sentence):
        tokenizers.load(tmp_path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        tokenizers.load(tmp_path)
    with pytest.raises(UsageError, match="cannot write the tokenizer"):
        ByteTokenizer().save(tmp_path / "absent")
