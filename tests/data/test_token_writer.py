"""From documents to a token file: every document once, whole, with its end; a share of them for validation."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygpt.data.division
import tinygpt.data.token_writer
from tinygpt.data import CharacterVocabulary, open_tokens, split, write_tokens
from tinygpt.data.division import divided
from tinygpt.data.documents import Piece
from tinygpt.data.token_writer import write_documents
from tinygpt.errors import UsageError
from tinygpt.kernel import use_kernels
from tinygpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, UnknownCharacterError

DOCUMENTS = st.lists(st.text(st.sampled_from("zaé𝄞 \n"), min_size=1, max_size=12), min_size=1, max_size=12)


def pieces_of(documents: list[str], size: int = 4) -> list[Piece]:
    found = []
    for document in documents:
        cuts = [document[i : i + size] for i in range(0, len(document), size)]
        found += [Piece(cut, False) for cut in cuts[:-1]] + [Piece(cuts[-1], True)]
    return found


def parts_of(documents: list[str], fraction: float) -> list[list[str]]:
    """The documents for training and those for validation."""
    found: list[list[str]] = [[], []]
    held = ""
    for part, piece in divided(pieces_of(documents), fraction):
        held += piece.text
        if piece.last:
            found[part].append(held)
            held = ""
    return found


@settings(deadline=None)
@given(documents=DOCUMENTS, fraction=st.sampled_from([0.1, 0.5]), size=st.integers(1, 9), cross=st.booleans())
@pytest.mark.parametrize("kind", ["vocabulary", "byte"])
def test_documents_come_back(
    tmp_path_factory, kind: str, documents: list[str], fraction: float, size: int, cross: bool
) -> None:
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    tokenizer = ByteTokenizer(end_token=True) if kind == "byte" else CharacterVocabulary(end_token=True)
    written = write_documents(pieces_of(documents, size), tokenizer, path, "the text", fraction, cross)
    if isinstance(tokenizer, CharacterVocabulary):
        tokenizer = tokenizer.tokenizer()
        assert tokenizer == CharTokenizer("".join(sorted(set("".join(documents)))), end_token=True)
    tokens, wanted = open_tokens(path), parts_of(documents, fraction)
    assert tokens.dtype == np.uint16
    assert tokens.end_token == (None if cross else tokenizer.eos_token_id)
    ends = tokenizer.decode([tokenizer.eos_token_id])
    assert tokenizer.decode(tokens) == "".join(document + ends for part in wanted for document in part)
    assert written.documents == [len(part) for part in wanted]
    train, validation = split(tokens, fraction)
    assert train.end_token == validation.end_token == tokens.end_token
    if len(validation) == written.tokens[1]:
        assert tokenizer.decode(validation) == "".join(document + ends for document in wanted[1])
    else:  # a few long documents
        assert len(train) == int((1 - fraction) * len(tokens))
        assert written.tokens[1] < 0.5 * fraction * len(tokens)
    assert [found.name for found in path.parent.iterdir()] == ["tokens.npy"]


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), size=st.integers(1, 9))
def test_one_text_is_written_as_ever(tmp_path_factory, text: str, size: int) -> None:
    """The vocabulary that is built on the way gives the file that a tokenizer made from the whole text gives."""
    folder = tmp_path_factory.mktemp("tokens")
    vocabulary = CharacterVocabulary(end_token=False)
    written = write_documents(pieces_of([text], size), vocabulary, folder / "a.npy", "the text")
    assert written.tokens == [len(text), 0]
    assert vocabulary.tokenizer() == CharTokenizer.from_text(text)
    write_tokens([text], CharTokenizer.from_text(text), folder / "b.npy")
    assert (folder / "a.npy").read_bytes() == (folder / "b.npy").read_bytes()


@pytest.mark.slow
def test_a_vocabulary_that_outgrows_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinygpt.data.token_writer, "_CHUNK", 1000)
    characters = list(map(chr, range(0x10000, 0x10000 + 70_000)))
    random.Random(0).shuffle(characters)
    documents = ["".join(characters[i : i + 7_000]) for i in range(0, 70_000, 7_000)]
    vocabulary = CharacterVocabulary(end_token=True)
    write_documents(pieces_of(documents, 1 << 16), vocabulary, tmp_path / "t.npy", "the text", 0.3)
    tokens, wanted = open_tokens(tmp_path / "t.npy"), parts_of(documents, 0.3)
    assert tokens.dtype == np.uint32
    assert all(wanted)
    assert vocabulary.tokenizer().decode(tokens) == "".join(d + "<|endoftext|>" for part in wanted for d in part)


@pytest.mark.slow
def test_the_share_for_validation() -> None:
    dice = random.Random(5)
    documents = ["".join(dice.choices("abcd ", k=dice.randint(1, 200))) for _ in range(3000)]
    wanted = parts_of(documents, 0.1)
    share = sum(map(len, wanted[1])) / sum(map(len, documents))
    assert 0.0995 < share <= 0.1
    places = [documents.index(document) for document in wanted[1] if len(document) > 9]
    assert max(np.diff(places)) < 200  # from all over the text
    equal = parts_of([f"{i:05}" for i in range(1000)], 0.1)
    assert 97 <= len(equal[1]) <= 100
    assert len({int(document) % 10 for document in equal[1]}) == 10  # no period decides


def test_long_documents_are_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinygpt.data.division, "_HELD", 20)
    documents = [f"{i:02}" + "a" * (length - 2) for i, length in enumerate([9, 20, 21, 50] * 16)]
    wanted = parts_of(documents, 0.2)
    assert {len(document) for document in wanted[1]} == {9, 20}
    assert sorted(wanted[0] + wanted[1]) == sorted(documents)


@pytest.mark.parametrize("together", [1, 16, 1 << 20])
@pytest.mark.parametrize("bodies", ["auto", "reference"])
def test_documents_of_bpe_are_encoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int, bodies: str
) -> None:
    """Alone or together with others, whole or in pieces, and whatever stands at an end: its ids are its own."""
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    ends = ["", " ", "\n\n", "'l", "<|endoftext|>", "<|endof", "\u4e2d\u3002", "\u4e2d", "\x1c", "\xbd", "'", "a" * 70]
    documents = [f"{a}the foxes{b}" for a in ends for b in ends] + ["they'll " * 40, "\u4e2d\u6587" * 200, " ", "."]
    tokenizer = BPETokenizer.train("they'll see the foxes <|endoftext|> \u4e2d\u6587\u3002 " * 3, 300)
    monkeypatch.setattr(tinygpt.data.token_writer, "_TOGETHER", together)
    path, wanted = tmp_path / "t.npy", parts_of(documents, 0.2)
    with use_kernels(bodies):
        written = write_documents(pieces_of(documents, 30), tokenizer, path, "the text", 0.2)
    ids = [[*tokenizer._library.encode(document).ids, tokenizer.eos_token_id] for part in wanted for document in part]
    assert open_tokens(path).tolist() == list(itertools.chain.from_iterable(ids))
    assert written.documents == [len(part) for part in wanted]
    assert [written.tokens[1], *written.documents] == [sum(map(len, ids[len(wanted[0]) :])), *map(len, wanted)]


def test_what_can_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    with pytest.raises(UsageError, match="the books is empty, or the tokenizer knows none"):
        write_documents([], ByteTokenizer(True), path, "the books", 0.1)
    with pytest.raises(UsageError, match="the tokenizer has no end token to keep the documents of the books apart"):
        write_documents(pieces_of(["a"]), ByteTokenizer(), path, "the books", 0.1)
    with pytest.raises(UnknownCharacterError, match=r"'é'.* at position 5 of document 2 of the books"):
        write_documents(pieces_of(["ab", "ababaé"]), CharTokenizer("ab", end_token=True), path, "the books", 0.1)
    words = pieces_of(["a" * 5, "b", "ab" * 4 + "é"])
    with pytest.raises(UnknownCharacterError, match=r"'é'.* at position 8 of document 3 of the books"):
        write_documents(words, CharTokenizer("ab", end_token=True), path, "the books", 0.1)
    assert not list(tmp_path.iterdir())
    write_documents(pieces_of(["ab", "b"]), CharTokenizer("ab"), path, "the books", 0.1, cross_documents=True)
    assert open_tokens(path).tolist() == [0, 1, 1]  # joined


def test_a_damaged_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    write_documents(pieces_of(["a" * 30] * 9), ByteTokenizer(True), path, "the books", 0.3)
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"0", content[:-8], content.replace(b"divided\x02", b"divided\x01")):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="is damaged"):
            open_tokens(path)
