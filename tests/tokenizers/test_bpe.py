"""Byte-level BPE: every text comes back, no cut is seen in the ids, the files are GPT-2's, and each mistake is told."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.texts import CHINESE, ENGLISH, TEXT
from tinygpt import tokenizers
from tinygpt.errors import CheckpointError, DtypeError, MissingExtraError, RangeError, UsageError
from tinygpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, StreamDecoder
from tinygpt.tokenizers.byte_characters import byte_of_character, bytes_of_token

library = pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train([ENGLISH * 3, CHINESE * 3], 400)


@pytest.fixture
def folder(tokenizer: BPETokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path)
    return tmp_path


def change(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# Text to ids and back ---------------------------------------------------------------------------


@settings(deadline=None)
@given(text=TEXT)
def test_every_text_comes_back(tokenizer: BPETokenizer, text: str) -> None:
    for ids in (tokenizer.encode(text), tokenizer.encode(text, allow_special=True)):
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes(ids) == text.encode("utf-8")
    assert not tokenizer.special_ids & set(tokenizer.encode(text).tolist())


def test_it_merges(tokenizer: BPETokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("the end of the end")] == [
        "the",
        " end",
        " of",
        " the",
        " end",
    ]
    assert len(tokenizer.encode(CHINESE)) < len(CHINESE) < len(CHINESE.encode("utf-8"))


def test_the_words_are_gpt2s(tokenizer: BPETokenizer) -> None:
    """Merges stay inside the words that the expression of the docstring finds; here in the terms of Python's `re`."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+"
    for text in (ENGLISH, CHINESE):
        found = re.findall(words, text)
        assert "".join(found) == text
        assert tokenizer.encode(text).tolist() == [i for word in found for i in tokenizer.encode(word).tolist()]


def test_the_table_of_bytes() -> None:
    table = byte_of_character()
    assert sorted(table.values()) == list(range(256))
    assert all(not character.isspace() and character.isprintable() for character in table)
    assert {"Ġ": 32, "Ċ": 10, "a": 97, "Ń": 173, "ÿ": 255, "Ā": 0}.items() <= table.items()
    assert set(table) == set(library.pre_tokenizers.ByteLevel.alphabet())
    assert bytes_of_token("ĠaÃ©") == " aé".encode()
    assert bytes_of_token("a b€") == "a b€".encode()  # not written in the table


def test_special_tokens(tokenizer: BPETokenizer) -> None:
    mark = tokenizer.vocab_size - 1
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (mark, mark, None)
    assert tokenizer.special_ids == {mark}
    assert tokenizer.encode("a<|endoftext|>b", allow_special=True).tolist().count(mark) == 1
    assert mark not in tokenizer.encode("a<|endoftext|>b")
    ids = [*tokenizer.encode("a"), mark, *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == "a<|endoftext|>b"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert tokenizer.batch_decode([ids, ids[:2]], skip_special_tokens=True) == ["ab", "a"]
    assert tokenizer.batch_decode([ids]) == ["a<|endoftext|>b"]
    assert (ByteTokenizer().eos_token_id, CharTokenizer("a").bos_token_id) == (None, None)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 399)), skip=st.booleans())
def test_streaming_equals_decoding(tokenizer: BPETokenizer, ids: list[int], skip: bool) -> None:
    ids = [i % tokenizer.vocab_size for i in ids]
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    assert "".join([*map(decoder.feed, ids), decoder.finish()]) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_bad_text_and_bad_ids(tokenizer: BPETokenizer) -> None:
    with pytest.raises(RangeError, match=r"position 1 \(U\+D800\)"):
        tokenizer.encode("a\ud800")
    with pytest.raises(DtypeError, match="not bytes"):
        tokenizer.encode(b"a")  # type: ignore[arg-type]
    with pytest.raises(RangeError, match=f"0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode([tokenizer.vocab_size])


# Training ---------------------------------------------------------------------------------------


def test_training_gives_the_same_tokenizer_again() -> None:
    texts = [ENGLISH * 5, CHINESE * 5]
    first, again = BPETokenizer.train(texts, 350), BPETokenizer.train(iter(texts), 350)
    assert first == again
    assert hash(first) == hash(again)
    assert first.config()["tokenizer"]["model"]["merges"] == again.config()["tokenizer"]["model"]["merges"]
    assert first != BPETokenizer.train(texts, 340)


def test_the_size_of_the_vocabulary() -> None:
    assert BPETokenizer.train(ENGLISH * 3, 300).vocab_size == 300
    assert BPETokenizer.train("ab", 10_000).vocab_size == 257  # no pair occurs twice
    assert BPETokenizer.train("ab", 10_000, min_frequency=1).vocab_size == 258
    assert BPETokenizer.train("ab", 10_000, min_frequency=2**70).vocab_size == 257
    several = BPETokenizer.train(ENGLISH * 3, 270, special_tokens=["<|a|>", "<|b|>"])
    assert (several.eos_token_id, several.special_ids) == (268, {268, 269})
    without = BPETokenizer.train(ENGLISH * 3, 270, special_tokens=())
    assert (without.eos_token_id, without.special_ids, without.vocab_size) == (None, frozenset(), 270)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"vocab_size": 256}, "vocab_size must be at least 257, not 256"),
        ({"vocab_size": 3e2}, "vocab_size must be a whole number"),
        ({"vocab_size": 10**14}, "vocab_size must be at most 10,000,000, not 100,000,000,000,000"),
        ({"vocab_size": 2**70}, "vocab_size must be at most"),
        ({"special_tokens": "<|endoftext|>"}, "a list of strings"),
        ({"special_tokens": ["<|a|>", "<|a|>"]}, "distinct"),
        ({"special_tokens": [""]}, "not empty"),
        ({"special_tokens": ["the"]}, "choose a name such as"),
        ({"special_tokens": [3]}, "not int"),
        ({"texts": ""}, "the text is empty"),
        ({"texts": []}, "the text is empty"),
        ({"texts": ["a", b"b"]}, "not bytes"),
        ({"texts": ["a", "\udfff"]}, "surrogate"),
        ({"min_frequency": 0}, "min_frequency must be at least 1"),
    ],
)
def test_mistakes_in_training(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        BPETokenizer.train(**{"texts": ENGLISH * 3, "vocab_size": 300} | arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_without_the_library(tokenizer: BPETokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for use in (lambda: BPETokenizer.train("a", 300), lambda: tokenizers.load(folder)):
        with pytest.raises(MissingExtraError, match=r"pip install tokenizers"):
            use()


# Files ------------------------------------------------------------------------------------------


def test_save_and_load(tokenizer: BPETokenizer, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    }  # fmt: skip
    for loaded in (tokenizers.load(folder), BPETokenizer.load(folder), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(loaded, BPETokenizer)
        assert loaded == tokenizer
        assert loaded.special_ids == tokenizer.special_ids
        assert loaded.eos_token_id == tokenizer.eos_token_id
    assert copy.deepcopy(tokenizer) == tokenizer


def test_the_library_reads_what_was_saved(tokenizer: BPETokenizer, folder: Path) -> None:
    theirs = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    older = library.ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    assert theirs.get_vocab_size() == older.get_vocab_size() == tokenizer.vocab_size
    for text in (ENGLISH, CHINESE, "a  b\n\n c\t\td"):
        assert theirs.encode(text).ids == older.encode(text).ids == tokenizer.encode(text).tolist()
        assert theirs.decode(tokenizer.encode(text).tolist()) == text
    special = "x<|endoftext|>"
    assert theirs.encode(special).ids == tokenizer.encode(special, allow_special=True).tolist()


def test_vocab_and_merges_alone(tokenizer: BPETokenizer, folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("older")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, other)
    for loaded in (tokenizers.load(other), BPETokenizer.from_files(other / "vocab.json", other / "merges.txt")):
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.eos_token_id == loaded.bos_token_id == tokenizer.eos_token_id
        np.testing.assert_array_equal(loaded.encode(ENGLISH + CHINESE), tokenizer.encode(ENGLISH + CHINESE))
    (other / "merges.txt").write_bytes((other / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert tokenizers.load(other) == loaded


def test_a_folder_of_older_files_with_added_tokens(tokenizer: BPETokenizer, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    size = tokenizer.vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<|b|>": size + 1, "<|a|>": size}), encoding="utf-8")
    change(folder / "special_tokens_map.json", lambda names: names.update(pad_token={"content": "<|a|>"}))
    loaded = tokenizers.load(folder)
    assert (loaded.vocab_size, loaded.pad_token_id) == (size + 2, size)
    assert loaded.special_ids == {size - 1, size}  # <|b|> is a word that was added, and no mark
    assert loaded.encode("<|a|><|b|>").tolist() == [*tokenizer.encode("<|a|>"), size + 1]
    assert loaded.encode("<|a|><|b|>", allow_special=True).tolist() == [size, size + 1]
    loaded.save(folder)
    assert json.loads((folder / "added_tokens.json").read_text(encoding="utf-8")) == {"<|a|>": size, "<|b|>": size + 1}
    assert tokenizers.load(folder) == loaded


def test_the_first_files_of_gpt2(tokenizer: BPETokenizer, folder: Path) -> None:
    """As they were published: merges as texts, a model without its type, no names of special tokens."""

    def older(content: dict[str, Any]) -> None:
        del content["model"]["type"], content["pre_tokenizer"]["use_regex"]
        content["model"] |= {"unk_token": "", "merges": [" ".join(pair) for pair in content["model"]["merges"]]}

    change(folder / "tokenizer.json", older)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}', encoding="utf-8")
    (folder / "special_tokens_map.json").unlink()
    loaded = tokenizers.load(folder)
    assert loaded.eos_token_id == tokenizer.eos_token_id
    np.testing.assert_array_equal(loaded.encode(ENGLISH), tokenizer.encode(ENGLISH))
    loaded.save(folder)
    assert json.loads((folder / "tokenizer_config.json").read_bytes())["model_max_length"] == 1024


def test_a_folder_has_one_tokenizer(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    CharTokenizer("ab").save(tmp_path)
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path) == tokenizer
    CharTokenizer("ab").save(tmp_path)
    assert tokenizers.load(tmp_path) == CharTokenizer("ab")
    with pytest.raises(UsageError, match="cannot write the tokenizer"):
        tokenizer.save(tmp_path / "absent")


def test_a_scheme_that_may_cross_a_border_gets_the_text_whole(tokenizer: BPETokenizer, folder: Path) -> None:
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    token = {"id": tokenizer.vocab_size, "content": "of the", **entry}
    change(folder / "tokenizer.json", lambda content: content["added_tokens"].append(token))
    loaded = tokenizers.load(folder)
    assert loaded.encode("end of the end").tolist().count(tokenizer.vocab_size) == 1
    assert list(loaded.whole_pieces(["end of", " the", " end"])) == ["end of the end"]
    assert loaded.decode(loaded.encode("end of the end")) == "end of the end"
    assert list(tokenizer.whole_pieces(["end of", " the", " end"])) == ["end", " of", " the", " end"]


def edited(name: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda folder: change(folder / name, edit)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (written("tokenizer.json", b"{"), "damaged or cut short"),
        (written("tokenizer.json", b"[" * 100_000), "damaged or cut short"),
        (written("tokenizer.json", b"\xff"), "not UTF-8"),
        (written("tokenizer.json", b"[]"), "holds a list, not a JSON object"),
        (written("tokenizer.json", b'{"a": "\\ud800"}'), "surrogates"),
        (written("tokenizer_config.json", b"nonsense"), "tokenizer_config.json is damaged"),
        (edited("tokenizer.json", lambda c: c.pop("model")), "its model is None, not BPE"),
        (
            edited("tokenizer.json", lambda c: c["model"].update(type="WordPiece")),
            "is 'GPT2Tokenizer', not one of BERT's",
        ),
        (edited("tokenizer.json", lambda c: c.update(pre_tokenizer=None)), "not ByteLevel"),
        (edited("tokenizer.json", lambda c: c["model"].update(end_of_word_suffix="</w>")), "'</w>'"),
        (edited("tokenizer.json", lambda c: c["model"].update(vocab=[])), "not a JSON object that maps tokens"),
        (edited("tokenizer.json", lambda c: c["model"]["vocab"].pop("a")), "no token has the id"),
        (edited("tokenizer.json", lambda c: c["model"]["vocab"].update(a=1.5)), "'a' is 1.5, not an integer"),
        (edited("tokenizer.json", lambda c: c["model"]["vocab"].update(a=3)), "two tokens have the id 3"),
        (edited("tokenizer.json", lambda c: c["model"]["merges"].append(["qqq", "a"])), "qqq.*out of vocabulary"),
        (edited("tokenizer.json", lambda c: c["model"].update(merges=7)), "is not a valid byte-level BPE tokenizer"),
        (edited("tokenizer.json", lambda c: c.update(added_tokens=7)), "added_tokens"),
        (edited("tokenizer.json", lambda c: c["added_tokens"][0].update(id=5)), "has two ids"),
        (edited("special_tokens_map.json", lambda c: c.update(eos_token=5)), "eos_token is 5, not a string"),
        (edited("special_tokens_map.json", lambda c: c.update(eos_token="Ġ")), "also the ordinary token for b' '"),
        (edited("tokenizer_config.json", lambda c: c.update(add_bos_token="no")), "add_bos_token is 'no', neither"),
        (edited("tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["x.Y"]})), "auto_map names"),
        (edited("tokenizer_config.json", lambda c: c.update(vocab={"a": 0})), "its setting vocab is not supported"),
        (
            edited("tokenizer_config.json", lambda c: c.update(tokenizer_class="Qwen2Tokenizer")),
            "tokenizer_class Qwen2Tokenizer is not supported",
        ),
        (edited("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"-1": {}})), "the id '-1'"),
        (
            edited("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"9": {}})),
            "is not a string with the",
        ),
        (
            edited("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"999999": {"content": "x"}})),
            "the id 999999, but the vocabulary gives it 87",
        ),
        (edited("tokenizer_config.json", lambda c: c.update(extra_special_tokens=[5])), "not a list of strings"),
        (edited("tokenizer_config.json", lambda c: c.update(fast_tokenizer_files=5)), "names another file, '5'"),
        (edited("tokenizer_config.json", lambda c: c.update(tokenizer_class=5)), "tokenizer_class is 5 and"),
        (written("config.json", b'{"model_type": ["x"]}'), "its model_type \\['x'\\]: both must be strings"),
        (edited("tokenizer.json", lambda c: c.update(normalizer={"type": "NFC"})), "would ignore its normalizer"),
    ],
)
def test_damaged_and_lying_files(folder: Path, damage: Callable[[Path], object], sentence: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        tokenizers.load(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "cannot read the tokenizer .*merges.txt"),
        (written("merges.txt", b"#version: 0.2\na\n"), "line 2 is 'a', not two tokens"),
        (written("merges.txt", b"Q Q\n"), "QQ.*out of vocabulary"),
        (written("vocab.json", b'{"a": 0}'), "lacks 255 of the 256 bytes"),
        (written("added_tokens.json", b'{"<|a|>": "x"}'), "not an integer"),
        (written("added_tokens.json", b'{"<|a|>": 9999}'), "the next free id is"),
    ],
)
def test_damaged_older_files(folder: Path, damage: Callable[[Path], object], sentence: str) -> None:
    (folder / "tokenizer.json").unlink()
    damage(folder)
    with pytest.raises(CheckpointError, match=sentence):
        tokenizers.load(folder)


def test_every_cut_of_the_files_is_reported(tokenizer: BPETokenizer, folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 97):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            tokenizers.load(folder)


@settings(deadline=None)
@given(data=st.data())
def test_whatever_is_in_the_files(tokenizer: BPETokenizer, tmp_path_factory: Any, data: st.DataObject) -> None:
    """Any value in any place outside the vocabulary: a tokenizer whose texts come back, or a sentence."""
    folder = tmp_path_factory.mktemp("damaged")
    tokenizer.save(folder)
    path = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    content = json.loads(path.read_bytes())
    place: Any = content
    keys = list(content)
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        place, keys = inner, list(inner) if isinstance(inner, dict) else list(range(len(inner)))
    value = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.just([]), st.just({}))
    place[data.draw(st.sampled_from(keys))] = data.draw(value)
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        loaded = tokenizers.load(folder)
    except CheckpointError:
        return
    assert loaded.decode(loaded.encode(CHINESE)) == CHINESE
