"""Word vectors: every format is read, what is damaged is refused with a sentence, and rows go where their words are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interop.test_fuzz import edited, edits
from tests.tokenizers.test_wordpiece import MADE
from tinygpt import GPT, GPTConfig, UsageError
from tinygpt.interop import load_word_vectors
from tinygpt.interop.vector_files import VectorFile
from tinygpt.optim import AdamW
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer

WORDS = ["the", "cat", "Paris", "\u6211", "new york", "caf\u00e9"]
VECTORS = np.random.default_rng(0).standard_normal((6, 8)).astype("f4")
TOKENIZER = WordTokenizer(["The", "cat", "Paris", "zebra", "\u6211", ","])


def binary(words: list[Any] = WORDS, vectors: np.ndarray = VECTORS, end: bytes = b"\n") -> bytes:
    rows = (
        _bytes(word) + b" " + vector.astype("<f4").tobytes() + end for word, vector in zip(words, vectors, strict=True)
    )
    return f"{len(words)} {vectors.shape[1]}\n".encode() + b"".join(rows)


def text(words: list[Any] = WORDS, vectors: np.ndarray = VECTORS, header: bool = True) -> bytes:
    rows = (
        _bytes(w) + b" " + " ".join(map(repr, map(float, v))).encode() + b" \n"
        for w, v in zip(words, vectors, strict=True)
    )
    return (f"{len(words)} {vectors.shape[1]}\n".encode() if header else b"") + b"".join(rows)


def _bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else word.encode()


def model(n_embd: int = 8, vocab_size: int = TOKENIZER.vocab_size) -> GPT:
    return GPT(GPTConfig(vocab_size=vocab_size, block_size=4, n_layer=1, n_head=2, n_embd=n_embd))


def read(path: Path, content: bytes) -> dict[str, np.ndarray]:
    path.write_bytes(content)
    with VectorFile(path) as file:
        return {word: file.numbers(stored) for word, stored in file}


# Formats ----------------------------------------------------------------------------------------------

SPACELESS = [word.replace(" ", "_") for word in WORDS]
FORMATS = {
    "binary": binary(SPACELESS),
    "binary without line breaks": binary(SPACELESS, end=b""),
    "text": text(),
    "GloVe": text(header=False),
    "gzipped": gzip.compress(binary(SPACELESS)),
    "gzipped text": gzip.compress(text()),
    "Windows": text().replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_read(tmp_path: Path, name: str) -> None:
    found = read(tmp_path / "vectors", FORMATS[name])
    assert [word.replace("_", " ") for word in found] == WORDS
    np.testing.assert_array_equal(np.stack(list(found.values())), VECTORS)


def test_words_that_are_not_utf8_are_latin1(tmp_path: Path) -> None:
    for content in (binary([b"caf\xe9"], VECTORS[:1]), text([b"caf\xe9"], VECTORS[:1])):
        assert list(read(tmp_path / "vectors", content)) == ["caf\u00e9"]


@pytest.mark.parametrize("header", [True, False])
def test_a_row_whose_word_is_a_space(tmp_path: Path, header: bool) -> None:
    """Texts that were cut at each space have it as a word, and word2vec's files in text form have such rows."""
    found = read(tmp_path / "vectors", text(["the", " ", "", "cat"], VECTORS[:4], header=header))
    assert list(found) == ["the", "", "cat"]  # read, and the word of no token
    np.testing.assert_array_equal(found["cat"], VECTORS[3])


@pytest.mark.slow
def test_a_long_file_is_read_in_pieces(tmp_path: Path) -> None:
    """More than what is buffered at once; three words are wanted, and no more vectors are kept."""
    words = [f"w{number}" for number in range(40_000)]
    vectors = np.arange(40_000 * 16, dtype="f4").reshape(-1, 16)
    found = read(tmp_path / "vectors", binary(words, vectors))
    assert list(found) == words
    np.testing.assert_array_equal(found["w39999"], vectors[-1])


REFUSED = {
    "nothing": (b"", "is not a file of word vectors: its first line is b''"),
    "prose": (b"Once upon a time there was a king\n", "is not a file of word vectors: its first line is b'Once upon"),
    "no numbers": (b"6 0\n", r"has vectors of 0 numbers; they must be 1 to 65536"),
    "too wide": (b"6 99999999\n", "vectors of 99999999 numbers"),
    "cut header": (b"6 8", "is cut short: it has 0 of the 6 vectors of its first line"),
    "binary cut": (binary(SPACELESS)[:-10], "is cut short: it has 5 of the 6 vectors of its first line"),
    "text cut": (b"".join(text().splitlines(True)[:-1]), "has 5 of the 6 vectors"),
    "text cut in a line": (text()[:-30], r"vector 6: expected a word and 8 numbers, but there are \d, after b'caf"),
    "a wide row": (
        text() + b"more 1 2 3\n",
        r"vector 7: expected a word and 8 numbers, but there are 3, after b'more'",
    ),
    "text for a number": (b"2 3\na 1 2 3\nb 1 x 3\n", r"vector 2: b' 1 x 3' are not 3 numbers"),
    "decimal commas": (b"2 3\na 1,0 2,0 3,0\nb 1,0 2,0 3,0\n", r"vector 1: b' 1,0 2,0 3,0' are not 3 numbers"),
    "sparse": (b"2 2\na 0:0.5 7:0.25\nb 9:0.125 11:0.5\n", r"vector 1: b' 0:0.5 7:0.25' are not 2 numbers"),
    "not finite": (text(["a"], np.full((1, 3), np.nan)), "vector 1: not all of its numbers are finite"),
    "no word": (b"9999 2\n" + b"\xff" * 9000, "no word of at most 4096 bytes begins vector 1"),
    "fastText's model": (struct.pack("<ii", 793712314, 12), "is a model of fastText"),
    "gensim's file": (b"\x80\x04K\x01.", "is a pickle"),
    "zip": (b"PK\x03\x04rest", "is a zip archive"),
    "damaged gzip": (gzip.compress(binary())[:-20], "is damaged or cut short|is cut short"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    content, words = REFUSED[name]
    with pytest.raises(UsageError, match=words):
        read(tmp_path / "vectors", content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*nothing"):
        VectorFile(tmp_path / "nothing")
    with pytest.raises(UsageError, match="cannot read"):
        VectorFile(tmp_path)


@settings(max_examples=200)
@given(changes=edits, name=st.sampled_from(list(FORMATS)))
def test_bytes_changed_anywhere(tmp_path_factory: pytest.TempPathFactory, changes: list[Any], name: str) -> None:
    content = edited(FORMATS[name], changes, len(FORMATS[name]))
    try:
        read(tmp_path_factory.getbasetemp() / "fuzzed", content)
    except UsageError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message


# Into a model -----------------------------------------------------------------------------------------


def test_rows_found_are_copied_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(text())
    ours, before = model(), model().wte.weight.data.copy()
    found = load_word_vectors(ours, TOKENIZER, tmp_path / "vectors")
    after = ours.wte.weight.data
    for word, row in (("the", "The"), ("cat", "cat"), ("Paris", "Paris"), ("\u6211", "\u6211")):
        np.testing.assert_array_equal(after[TOKENIZER._ids[row]], VECTORS[WORDS.index(word)])
    others = [row for row in range(TOKENIZER.vocab_size) if row not in found.ids]
    assert len(others) == 5
    np.testing.assert_array_equal(after[others], before[others])
    assert (found.coverage, found.lowered) == (4 / 6, 1)
    assert str(found) == "4 of 6 words have a vector (66.7%), 1 of them in lower case"


def test_a_wider_vector_is_projected_so_that_products_stay(tmp_path: Path) -> None:
    low = np.random.default_rng(1).standard_normal((6, 4)) @ np.random.default_rng(2).standard_normal((4, 8))
    (tmp_path / "vectors").write_bytes(binary(SPACELESS, low))
    ours = model(n_embd=4)
    with pytest.raises(UsageError, match=r"have 8 numbers, and the model has 4 channels: project them \(project=True"):
        load_word_vectors(ours, TOKENIZER, tmp_path / "vectors")
    np.testing.assert_array_equal(ours.wte.weight.data, model(n_embd=4).wte.weight.data)
    found = load_word_vectors(ours, TOKENIZER, tmp_path / "vectors", project=True)
    assert found.kept == pytest.approx(1, abs=1e-6)
    assert "projected to 4 numbers that keep 100.0%" in str(found)
    rows = low[[0, 1, 2, 3]]
    np.testing.assert_allclose(found.vectors @ found.vectors.T, rows @ rows.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ours.wte.weight.data[found.ids], found.vectors)
    (tmp_path / "vectors").write_bytes(binary(SPACELESS))
    found = load_word_vectors(model(n_embd=2), TOKENIZER, tmp_path / "vectors", project=True)
    squares = np.linalg.svd(VECTORS[:4].astype("f8"), compute_uv=False) ** 2
    assert found.kept == pytest.approx(squares[:2].sum() / squares.sum(), rel=1e-6)


def test_a_narrower_vector_fills_the_first_channels(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(binary(SPACELESS))
    ours, before = model(n_embd=12), model(n_embd=12).wte.weight.data.copy()
    load_word_vectors(ours, TOKENIZER, tmp_path / "vectors", project=True, scale=0.5)
    row = TOKENIZER._ids["cat"]
    np.testing.assert_array_equal(ours.wte.weight.data[row, :8], VECTORS[1] * np.float32(0.5))
    np.testing.assert_array_equal(ours.wte.weight.data[row, 8:], before[row, 8:])


def test_frozen_rows_stay(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(text())
    ids = np.array([[3, 4, 5, 6]])
    ours = model()
    assert load_word_vectors(ours, TOKENIZER, tmp_path / "vectors", freeze=True)
    ours.loss(ids, labels=ids).backward()
    assert ours.wte.weight.grad is None
    ours = model()
    found = load_word_vectors(ours, TOKENIZER, tmp_path / "vectors")
    optimizer, before = AdamW(ours.parameters(), lr=0.1), ours.wte.weight.data.copy()
    ours.loss(ids, labels=ids).backward()
    optimizer.step()
    assert (ours.wte.weight.data != before).any(axis=1).sum() > 5
    found.write(ours)
    changed = (ours.wte.weight.data != before).any(axis=1)
    assert not changed[found.ids].any()
    assert changed.any()


def test_which_tokens_are_words(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(text(["a", "un", "able", "\u6211", "[UNK]"], VECTORS[:5]))
    found = load_word_vectors(None, MADE, tmp_path / "vectors")
    tokens = [MADE.vocabulary.tokens[number] for number in found.ids]
    assert tokens == ["a", "\u6211", "un"]  # not ##able, which continues a word, nor a special token
    found = load_word_vectors(None, CharTokenizer("\u6211b \n"), tmp_path / "vectors")
    assert (found.ids.tolist(), found.words) == ([0], 2)
    with pytest.raises(UsageError, match="a tokenizer of type byte has no words"):
        load_word_vectors(None, ByteTokenizer(), tmp_path / "vectors")
    with pytest.raises(UsageError, match="none of the 1 words of the tokenizer is in"):
        load_word_vectors(None, WordTokenizer(["zebra"]), tmp_path / "vectors")


def test_pieces_of_bpe_that_begin_with_a_space_are_words(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    from tinygpt.tokenizers import BPETokenizer

    tokenizer = BPETokenizer.train("the cat, thecat xcat the cat " * 9, 290)
    assert "cat" in {tokenizer.decode([number]) for number in range(tokenizer.vocab_size)}  # a part of xcat
    (tmp_path / "vectors").write_bytes(text(["the", "cat", "at", "he"], VECTORS[:4]))
    found = load_word_vectors(model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "vectors")
    assert {tokenizer.decode([number]) for number in found.ids} == {" the", " cat"}


def test_models_that_cannot_take_them(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(text())
    with pytest.raises(UsageError, match="has 9 tokens, but the model 5: they do not belong together"):
        load_word_vectors(model(vocab_size=5), TOKENIZER, tmp_path / "vectors")
    with pytest.raises(UsageError, match="packed into int8 can't take vectors"):
        load_word_vectors(model().pack("int8"), TOKENIZER, tmp_path / "vectors")
