"""BERT's tokenizer: how texts are cut, how pieces are joined again, and what its files may say."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt import tokenizers
from tinygpt.errors import CheckpointError, RangeError, UsageError
from tinygpt.tokenizers import StreamDecoder, WordPieceTokenizer
from tinygpt.tokenizers.pieces import recut

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Letters and marks alone, as in a vocabulary of characters, then longer pieces.
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789我爱北京市长江水。，！？,.!?'-()\"", "σ", "\u2028"]
PIECES = [f"##{letter}" for letter in LETTERS[:36]] + ["un", "##able", "##aff", "play", "##ing", "cafe", "##京", "北京"]
VOCABULARY = [*SPECIAL, *LETTERS, *PIECES]


def folder_of(folder: Path, tokens: list[str] = VOCABULARY, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPieceTokenizer:
    found = tokenizers.load(folder_of(tmp_path / "bert"))
    assert isinstance(found, WordPieceTokenizer)
    return found


def cut(tokenizer: WordPieceTokenizer, text: str, **options: Any) -> list[str]:
    return [tokenizer.vocabulary.tokens[number] for number in tokenizer.encode(text, **options)]


# Encoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("我爱北京", "我 爱 北 京"),  # not 北京, which is a token: each Chinese character is a word
        ("unaffable playing", "un ##aff ##able play ##ing"),
        ("Playing, CAFÉ!", "play ##ing , cafe !"),
        ("a\u200bb\x00c\ufffdd", "a ##b ##c ##d"),
        ("a\tb\nc\u3000d\u00a0e\x85f", "a b c d e ##f"),  # U+0085 is a control character, not a space
        ("爱a北 京", "爱 a 北 京"),
        ("don't", "d ##o ##n ' t"),
        ("Σ", "σ"),
        ("x" * 100, "x" + " ##x" * 99),
        ("x" * 101 + " a", "[UNK] a"),
        ("日a", "[UNK] a"),
        ("aÖ日b", "a ##o [UNK] b"),
        ("a_ b", "a [UNK] b"),
        ("[SEP]", "[UNK] s ##e ##p [UNK]"),
        ("", ""),
        ("\n \t", ""),
    ],
)
def test_how_texts_are_cut(tokenizer: WordPieceTokenizer, text: str, tokens: str) -> None:
    assert cut(tokenizer, text) == tokens.split()
    assert tokenizer.encode(text).dtype == np.int64


def test_special_tokens_count_only_where_they_are_trusted(tokenizer: WordPieceTokenizer) -> None:
    assert cut(tokenizer, "我[SEP]a[sep]", allow_special=True) == [
        "我",
        "[SEP]",
        "a",
        "[UNK]",
        *["s", "##e", "##p"],
        "[UNK]",
    ]
    assert tokenizer.encode_special("[CLS]").tolist() == [2]
    assert 3 not in tokenizer.encode("我[SEP]a")


def test_settings_change_how_texts_are_cut(tmp_path: Path) -> None:
    def of(text: str, **settings: Any) -> list[str]:
        return cut(WordPieceTokenizer.load(folder_of(tmp_path / "x", [*VOCABULARY, "A", "é"], **settings)), text)

    assert of("A é", do_lower_case=False) == ["A", "é"]
    assert of("A é") == ["a", "e"]
    assert of("A é", strip_accents=False) == ["a", "é"]
    assert of("A é", do_lower_case=False, strip_accents=True) == ["A", "e"]
    assert of("我北京", tokenize_chinese_chars=False) == ["[UNK]"]
    assert of("北京京", tokenize_chinese_chars=False) == ["北京", "##京"]


def test_a_text_in_pieces_has_the_same_ids(tokenizer: WordPieceTokenizer) -> None:
    text = "Playing unaffable, 我爱 北京。\n\n长江 don't " * 20
    for size in (1, 3, 7, 50):
        pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
        found = [tokenizer.encode(piece) for piece in tokenizer.whole_pieces(pieces)]
        assert len(found) > 10
        np.testing.assert_array_equal(np.concatenate(found), tokenizer.encode(text))
        assert "".join(recut(pieces)) == text


# Decoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("我爱 北京。", "我爱北京。"),
        ("Playing , unaffable!", "playing, unaffable!"),
        ("a b我c d", "a b我c d"),
        ("don't (a) b-c", "don't (a) b-c"),
        ("我日a", "我[UNK] a"),
    ],
)
def test_how_pieces_are_joined(tokenizer: WordPieceTokenizer, text: str, shown: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == shown


def test_special_tokens_are_shown_or_left_out(tokenizer: WordPieceTokenizer) -> None:
    ids = tokenizer.encode_special("[CLS]a b[SEP]我[PAD]")
    assert tokenizer.decode(ids) == "[CLS]a b[SEP]我[PAD]"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a b我"
    with pytest.raises(RangeError, match="ids go from 0 to"):
        tokenizer.decode([len(VOCABULARY)])


ids_of_any_kind = st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=30)


@given(ids=ids_of_any_kind, skip=st.booleans())
def test_streaming_gives_what_decoding_gives(ids: list[int], skip: bool) -> None:
    tokenizer = MADE
    decoder = StreamDecoder(tokenizer, skip)
    for _ in range(2):  # finish() makes it ready for another text
        shown = "".join(decoder.feed(number) for number in ids) + decoder.finish()
        assert shown == tokenizer.decode(ids, skip)


@given(text=st.text(st.sampled_from("ab cd我爱北京,.!?'-()\"，。σΣé A1\n日"), max_size=30))
def test_what_is_decoded_is_encoded_to_the_same_ids(text: str) -> None:
    ids = MADE.encode(text)
    if MADE._unknown not in ids:
        assert MADE.encode(MADE.decode(ids)).tolist() == ids.tolist()


MADE = WordPieceTokenizer(
    tokenizers.wordpiece.Vocabulary(
        VOCABULARY, special={"unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]"}
    )
)


# Files ------------------------------------------------------------------------------------------------


def test_which_tokens_begin_and_end_a_text(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x")
    found = tokenizers.load(folder)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id, found.start_ids) == (2, 3, 0, [])
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 50256, "bos_token_id": 4}))
    found = tokenizers.load(folder)  # GPT-2's end is not in this vocabulary
    assert (found.bos_token_id, found.eos_token_id) == (4, 3)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 7}))
    assert tokenizers.load(folder).eos_token_id == 7
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert tokenizers.load(folder).eos_token_id == 9
    folder_of(folder, eos_token="[MASK]")
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink()
    assert tokenizers.load(folder).eos_token_id == 4


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_lower_case": False, "strip_accents": True, "eos_token": "[MASK]", "tokenize_chinese_chars": False}],
)
def test_what_is_saved_is_loaded(tmp_path: Path, settings: dict[str, Any]) -> None:
    tokenizer = tokenizers.load(folder_of(tmp_path / "x", **settings))
    target = tmp_path / "y"
    target.mkdir()
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.tinygpt.json"):
        (target / name).write_text("of an older tokenizer")
    tokenizer.save(target)
    assert {path.name for path in target.iterdir()} == {"vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert tokenizers.load(target) == tokenizer
    assert (target / "vocab.txt").read_bytes() == (tmp_path / "x" / "vocab.txt").read_bytes()


def test_added_tokens_follow_the_vocabulary(tmp_path: Path) -> None:
    size = len(VOCABULARY)
    folder = folder_of(tmp_path / "x", additional_special_tokens=["<b>"])
    (folder / "added_tokens.json").write_text(json.dumps({"<b>": size + 1, "<a>": size}))
    found = tokenizers.load(folder)
    assert found.vocab_size == size + 2
    assert found.special_ids & {size, size + 1} == {size + 1}  # <b> is listed as special
    assert found.encode_special("a<b>").tolist() == [5, size + 1]
    assert found.encode("a<a>").tolist() == [5, size]
    assert size + 1 not in found.encode("a<b>")
    (folder / "added_tokens.json").write_text(json.dumps({"<b>": size + 1}))
    with pytest.raises(CheckpointError, match=f"leave a gap after the {size} tokens"):
        tokenizers.load(folder)


def test_tokens_can_be_added(tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    more = tokenizer.with_tokens(["<User>", "新 词"])
    ids = more.encode("a<User>b 新 词我")
    assert ids.tolist() == [5, len(VOCABULARY), 6, len(VOCABULARY) + 1, VOCABULARY.index("我")]
    assert more.decode(ids) == "a<User>b新 词我"
    assert more.special_ids == tokenizer.special_ids
    assert list(more.whole_pieces(["a 新", " 词 b"])) == ["a 新 词 b"]
    more.save(tmp_path)
    assert tokenizers.load(tmp_path) == more
    for token, words in (("我", "is in the vocabulary already"), ("", "is empty"), ("a\nb", "has a line break")):
        with pytest.raises(UsageError, match=words):
            tokenizer.with_tokens([token])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class is 'BertJapaneseTokenizer'"),
    "flag": ({"do_lower_case": "yes"}, "its setting do_lower_case is 'yes', neither true nor false"),
    "special": ({"unk_token": 3}, "its special token '3' is not text"),
    "unknown": ({"unk_token": "<unk>"}, "has no token for unknown words"),
    "list": ({"added_tokens_decoder": [1]}, "is not a valid BERT tokenizer"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_are_refused(tmp_path: Path, case: str) -> None:
    settings, words = BAD[case]
    with pytest.raises(CheckpointError, match=words):
        tokenizers.load(folder_of(tmp_path / "x", **settings))


def test_vocabularies_that_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", ["a", "b"])
    with pytest.raises(CheckpointError, match=r"has no token for unknown words: \[UNK\] must be in the vocabulary"):
        tokenizers.load(folder)
    (folder / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt is not UTF-8"):
        tokenizers.load(folder)
    (folder / "vocab.txt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has no token for unknown words"):
        tokenizers.load(folder)


def description(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json as the library `tokenizers` writes it."""
    return {
        "version": "1.0", "added_tokens": [{"id": 3, "content": "[SEP]", "special": True}],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": False},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {token: number for number, token in enumerate(VOCABULARY)}},
    } | changes  # fmt: skip


def test_a_tokenizer_json_of_this_kind_needs_no_library(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", do_lower_case=True)  # tokenizer.json comes first
    (folder / "tokenizer.json").write_text(json.dumps(description()))
    tokenizers.require_library(folder)
    found = tokenizers.load(folder)
    assert isinstance(found, WordPieceTokenizer)
    assert cut(found, "A我") == ["[UNK]", "我"]
    assert found.eos_token_id == 3
    for changes, words in (
        ({"normalizer": None}, "its normalizer is not BertNormalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre_tokenizer is not BertPreTokenizer"),
        ({"model": description()["model"] | {"vocab": {"[UNK]": 0, "[SEP]": 3}}}, "its ids are not 0, 1, 2 and so on"),
        ({"model": description()["model"] | {"max_input_chars_per_word": 5}}, "max_input_chars_per_word is 5"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps(description(**changes)))
        with pytest.raises(CheckpointError, match=words):
            tokenizers.load(folder)
