"""Tokenizer files that were made to do harm: no panic, no search without end, no text that fills the memory."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.texts import CHINESE, ENGLISH
from tinygpt.errors import CheckpointError, UsageError
from tinygpt.tokenizers import BPETokenizer
from tinygpt.tokenizers.hf_tokenizers import explain
from tinygpt.tokenizers.patterns import UnsafePatternError, check_pattern

library = pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SAFE = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL,
    "Qwen": _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL,
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL,
    "DeepSeek": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _TAIL,
    "numbers": r"\p{N}{1,3}",
    "Han": "[\u4e00-\u9fa5]+",
    "words": r"(?:ab|cd)?x\d*|\s+",
}
UNSAFE = [
    "(a+)+$", "(a|aa)+$", "(a|a)*b", "a+b", "a*a*c", ".*.*=.*", r"\s+$", r"\s+(?!\S)", "(a)\\1", "(?<=a)b", "(?x)a",
    "(?>a+)b", "a{0,9999}", "a{5,}", "a{300}", "(a|a)" * 12, "a**", "a{3}{3}", "(?=a+)b", "x(?:a+)?", "*",
    r"\X", r"\k<x>", "(", "[", "[a", "[]a+]", "\\", r"\p{L", "(" * 20 + ")" * 20, "[^\\r\\n]?a*a+",
]  # fmt: skip


@pytest.fixture(scope="module")
def saved() -> BPETokenizer:
    return BPETokenizer.train(ENGLISH * 3, 300)


def load(saved: BPETokenizer, folder: Path, **parts: Any) -> BPETokenizer:
    """The saved tokenizer with parts of its tokenizer.json put in other's place, under the class that keeps them."""
    saved.save(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | parts), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return BPETokenizer.load(folder)


def cutting(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


@pytest.mark.parametrize("pattern", SAFE.values(), ids=SAFE.keys())
def test_the_expressions_of_known_tokenizers_are_run(saved: BPETokenizer, tmp_path: Path, pattern: str) -> None:
    one = load(saved, tmp_path, pre_tokenizer=cutting(pattern))
    for text in (ENGLISH, CHINESE, "a" * 50_000, " " * 50_000, "A" * 50_000 + "1", " \n" * 20_000):
        assert one.decode(one.encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("pattern", UNSAFE)
def test_other_expressions_are_refused(saved: BPETokenizer, tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UnsafePatternError, match=r"\A[^\n]*may take forever[^\n]*\Z"):
        check_pattern(pattern)
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}
    for parts in ({"pre_tokenizer": cutting(pattern)}, {"normalizer": replace}):
        with pytest.raises(CheckpointError, match="may take forever on some text"):
            load(saved, tmp_path, **parts)


_PIECES = [
    "a",
    "b",
    "ab",
    "[ab]",
    r"\s",
    r"\p{L}",
    "(?:a|b)",
    "(?!a)",
    "(?i:ab)",
    "$",
    "|",
    "+",
    "*",
    "?",
    "{1,3}",
    "(",
    ")",
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(_PIECES), max_size=8).map("".join))
def test_what_is_run_takes_linear_time(pattern: str) -> None:
    """Drawn expressions that are taken: the engine's own limit on walking back (10 million steps) is never met."""
    try:
        check_pattern(pattern)
    except UnsafePatternError:
        return
    try:
        split = library.pre_tokenizers.Split(library.Regex(pattern), "isolated")
    except Exception:  # no expression
        return
    for text in ("a" * 3000, "ab" * 1500, "a" * 1500 + " " * 1500 + "b"):
        assert "".join(piece for piece, _ in split.pre_tokenize_str(text)) == text


SEQUENCE, TEXT = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}


FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def template(*single: Any) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(single), "pair": [SEQUENCE, TEXT], "special_tokens": {}}


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"post_processor": template(TEXT)}, "does not contain the text exactly once"),
        ({"post_processor": template(SEQUENCE, SEQUENCE)}, "does not contain the text exactly once"),
        ({"post_processor": template()}, "does not contain the text exactly once"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["s", 9999], "cls": ["c", 1]}}, "adds the id 9999"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}},
            "could make a text more than 1000 times longer",
        ),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 2000}}, "1000 times longer"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Precompiled"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}] * 40}},
            "ByteLevel twice",
        ),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "its decoder is 'WordPiece'"),
        ({"normalizer": 5}, "its normalizer is 5, not a JSON object"),
        ({"normalizer": {"type": "Unheard"}}, "is not a valid byte-level BPE tokenizer"),
        ({"added_tokens": [FLAGS | {"id": 300, "content": "  ", "rstrip": True}]}, "that strips white space"),
        ({"added_tokens": [{"id": -1, "content": "x"}]}, "two ids|not 0"),
        ({"added_tokens": [{"id": 2**70, "content": "<x>"}]}, "no token has the id"),
        ({"added_tokens": [{"id": 300, "content": "<x>", "special": "yes"}]}, "not a string with the flags"),
    ],
)  # fmt: skip
def test_parts_that_do_harm(saved: BPETokenizer, tmp_path: Path, parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load(saved, tmp_path, **parts)
    assert len(str(caught.value).splitlines()) == 1


def test_a_panic_is_an_error() -> None:
    """pyo3's PanicException is no Exception: nothing that catches errors would stop it."""
    one = library.Tokenizer(library.models.BPE(vocab={"a": 0}, merges=[]))
    one.pre_tokenizer = library.pre_tokenizers.Split(library.Regex("(a|aa)+$"), "isolated")
    with pytest.raises(UsageError, match=r"\Athe tokenizer: [^\n]+\Z") as caught, explain("the tokenizer: "):
        one.encode("a" * 60 + "b")
    assert not isinstance(caught.value.__cause__, Exception)
    with pytest.raises(KeyboardInterrupt), explain("the tokenizer: "):
        raise KeyboardInterrupt


# Training -----------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    return re.findall(r"\S+|\s+", text)


@pytest.mark.parametrize("text", ["a" * 100_000, " " * 100_000, "ACGT" * 30_000, "\u5929\u6c14\u597d\u3002" * 9000])
def test_training_on_a_text_without_blanks(text: str) -> None:
    """As one word it took hours: every merge moved all that stood behind it."""
    one = BPETokenizer.train(text, 280)
    assert one.decode(one.encode(text)) == text
    assert len(one.encode(text)) <= len(text) / 2


@pytest.mark.slow
def test_pieces_of_a_text_are_learnt_from_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text comes in chunks cut between words: the merges are those of the whole."""
    rnd = random.Random(0)
    text = " ".join("".join(rnd.choices("abcdef", k=rnd.randrange(1, 9))) for _ in range(20_000)) + CHINESE * 200
    in_pieces = BPETokenizer.train(text, 400)
    from tinygpt.tokenizers import bpe_training

    seen = list(bpe_training.bounded([text, ENGLISH]))
    assert max(map(len, seen)) < 2 * bpe_training._CHUNK
    assert "".join(seen) == text + ENGLISH
    monkeypatch.setattr(bpe_training, "bounded", lambda texts: texts)
    assert BPETokenizer.train(text, 400) == in_pieces


def test_every_piece_is_of_a_bounded_size() -> None:
    from tinygpt.tokenizers.bpe_training import _CHUNK, _LONGEST, bounded

    for text in (
        "a" * 90_000,
        " " * 90_000,
        ("a" * 5000 + " ") * 20,
        "\u5929\u6c14\u597d\u3002" * 9000 + " a b" * 9000,
        "",
    ):
        pieces = list(bounded([text]))
        assert "".join(pieces) == text
        assert all(len(word) <= _LONGEST for piece in pieces for word in words_of(piece))
        assert all(len(piece) < 2 * _CHUNK for piece in pieces)
