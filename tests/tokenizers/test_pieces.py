"""Where a text is cut makes no difference to its ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.texts import CHINESE, ENGLISH, TEXT
from tinygpt.data import open_tokens, write_tokens
from tinygpt.errors import UsageError
from tinygpt.tokenizers import BPETokenizer
from tinygpt.tokenizers.pieces import PAUSES, chunks, recut

library = pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train([ENGLISH * 3, CHINESE * 3], 400)


def cut(text: str, places: list[int]) -> Iterator[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return (text[begin:end] for begin, end in itertools.pairwise(edges))


@settings(deadline=None, max_examples=300)
@given(text=TEXT, places=st.lists(st.integers(0, 2**16)), size=st.integers(1, 9))
def test_no_cut_is_seen_in_the_ids(tokenizer: BPETokenizer, text: str, places: list[int], size: int) -> None:
    whole = tokenizer.encode(text).tolist()
    for pieces in (list(tokenizer.whole_pieces(cut(text, places))), list(recut(iter(text))), chunks(text, size)):
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in tokenizer.encode(piece).tolist()] == whole


@pytest.mark.slow
def test_every_border_that_is_taken_is_one() -> None:
    """All of Unicode but its last planes before a space, and as the white space itself."""
    split = library.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def words(text: str) -> list[str]:
        return [word for word, _ in split.pre_tokenize_str(text)]

    for code in (*range(0xD800), *range(0xE000, 0x20000)):
        for text in (f"a{chr(code)} b", f"a{chr(code)}b"):
            pieces = list(recut([text]))
            assert len(pieces) == 1 or words(text) == words(pieces[0]) + words(pieces[1]), hex(code)
    # Before a pause: after each such character, and after whatever stands before one.
    for code in (*range(0x4E00, 0x9FA6), *range(0x300)):
        text = f"'{chr(code)}{'' if code >= 0x4E00 else chr(0x5929)}{PAUSES[0]}{chr(code)}"
        left, right = recut([text])
        assert words(text) == words(left) + words(right), hex(code)


def test_a_text_without_blanks_need_not_come_whole() -> None:
    """A Chinese book in one line: its full stops are borders, and no piece is longer than a sentence or two."""
    pieces = list(recut(["\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002"] * 1000))
    assert "".join(pieces) == "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002" * 1000
    assert max(map(len, pieces)) < 20


def test_long_texts_are_encoded_in_chunks(tokenizer: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ENGLISH + CHINESE + "<|endoftext|>") * 300
    assert len(text) > 40_000
    in_chunks = [tokenizer.encode(text, allow_special=allow) for allow in (False, True)]
    monkeypatch.setattr("tinygpt.tokenizers.bpe._CHUNK", 1 << 40)
    for ids, allow in zip(in_chunks, (False, True), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text, allow_special=allow))
    assert in_chunks[1].tolist().count(tokenizer.eos_token_id) == 300


@pytest.mark.parametrize("text", [ENGLISH * 20, CHINESE * 20, "天" * 999, "  \n" * 300])
def test_token_files_do_not_depend_on_the_pieces(tokenizer: BPETokenizer, tmp_path: Path, text: str) -> None:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="")
    write_tokens(tmp_path / "text.txt", tokenizer, tmp_path / "whole.npy")
    write_tokens((text[i : i + 7] for i in range(0, len(text), 7)), tokenizer, tmp_path / "pieces.npy")
    whole, pieces = open_tokens(tmp_path / "whole.npy"), open_tokens(tmp_path / "pieces.npy")
    assert whole.dtype == np.uint16
    np.testing.assert_array_equal(whole, tokenizer.encode(text))
    np.testing.assert_array_equal(pieces, whole)


@pytest.mark.slow
def test_an_unfinished_line_does_not_take_quadratic_time() -> None:
    assert "".join(recut("a" for _ in range(200_000))) == "a" * 200_000


def test_a_word_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.tokenizers.pieces.LONGEST", 50)
    lines = ["x" * 20 + "\n"] * 20
    assert "".join(recut(lines)) == "".join(lines)
    for text in ("acgt" * 40, " " * 160):
        with pytest.raises(UsageError, match=r"50 characters in a row without a border between words, from '(ac|  )"):
            list(recut(itertools.repeat(text[:9], 20)))
