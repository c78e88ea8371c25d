"""Byte-level BPE against transformers' AutoTokenizer and the library tokenizers: files both ways, ids and texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compat import generate_theirs, load_theirs, make_ours, tokenizers, transformers
from tinygpt import UsageError
from tinygpt import tokenizers as ours
from tinygpt.tokenizers import BPETokenizer

TEXTS = [
    "The quick brown fox doesn't jump; it's we'll they've I'd, over 12 345 lazy dogs!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – für 3,50 €.",  # noqa: RUF001
    "今天天气很好，我们去公园散步吧。人工智能正在改变世界。",  # noqa: RUF001
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "다람쥐 헌 쳇바퀴에 타고파. 한국어 문장입니다.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "emoji 🙂🙃👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪🇨🇳, e\u0301 combining, \u200bzero width, \ufeffmark",
    "def f(x):\n\treturn  x ** 2   # spaces   \n\n\n    \r\n\u00a0\u3000end  ",
    "\x00\x01\x7f control, <|endoftext|> in a text, 's 'S 'll \u2019s ½²Ⅷ٣ _under_score_",
    "",
    " ",
    "a",
]
CORPUS = TEXTS * 4


def same(one: Any, theirs: Any, texts: list[str]) -> None:
    """Equal ids, and equal texts of them; special tokens in a text as transformers finds them."""
    assert len(theirs) == one.vocab_size
    for text in texts:
        ids = one.encode(text, allow_special=True).tolist()
        assert ids == theirs(text)["input_ids"] == theirs.encode(text, add_special_tokens=False), text
        assert one.decode(np.array(ids, dtype=np.int64)) == theirs.decode(ids) == text
        cut = ids[1:-1]  # what begins or ends inside a character
        assert one.decode(np.array(cut, dtype=np.int64)) == theirs.decode(cut), text
    batch = [one.encode(text, allow_special=True).tolist() for text in texts]
    for skip in (False, True):
        assert one.batch_decode(batch, skip_special_tokens=skip) == theirs.batch_decode(batch, skip_special_tokens=skip)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(one, name) == getattr(theirs, name), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[BPETokenizer, Path]:
    """One that tinygpt trained, and the folder where it was saved."""
    folder = tmp_path_factory.mktemp("ours")
    tokenizer = BPETokenizer.train(CORPUS, vocab_size=700)
    tokenizer.save(folder)
    return tokenizer, folder


@pytest.fixture(scope="module")
def library() -> Any:
    """One that the library tokenizers trained, as its documentation does it for GPT-2; the special token is id 0."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        CORPUS, vocab_size=650, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return tokenizer


def test_they_read_what_tinygpt_trained(trained: Any) -> None:
    tokenizer, folder = trained
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__.startswith("GPT2Tokenizer")
    same(tokenizer, theirs, TEXTS)
    same(BPETokenizer.load(folder), theirs, TEXTS)


@pytest.mark.parametrize("missing", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_either_form_of_the_files_is_enough(trained: Any, missing: str, tmp_path: Path) -> None:
    tokenizer = trained[0]
    tokenizer.save(tmp_path)
    (tmp_path / missing).unlink()
    same(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path), TEXTS)
    same(BPETokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path), TEXTS)


def test_vocab_and_merges_of_the_library(library: Any, tmp_path: Path) -> None:
    library.save_model(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    same(BPETokenizer.load(tmp_path), theirs, TEXTS)
    same(BPETokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt"), theirs, TEXTS)


def test_tokenizer_json_of_the_library(library: Any, tmp_path: Path) -> None:
    library.save(str(tmp_path / "tokenizer.json"))
    one = BPETokenizer.load(tmp_path)
    for text in TEXTS:
        assert one.encode(text, allow_special=True).tolist() == library.encode(text).ids
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    same(one, theirs, TEXTS)


def variants(library: Any, folder: Path) -> Iterator[tuple[str, Any]]:
    """Tokenizers of transformers, each saved to a folder of its own by transformers."""
    library.save_model(str(folder))
    plain = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    yield "plain", transformers.GPT2Tokenizer(**plain)
    yield "padding", transformers.GPT2Tokenizer(**plain, pad_token="<|pad|>")
    yield "marks", transformers.GPT2Tokenizer(**plain, bos_token="<s>", eos_token="</s>", unk_token="</s>")
    added = transformers.GPT2Tokenizer(**plain)
    added.add_tokens(["Weltraum", "散步"])
    added.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    yield "added", added


def test_whatever_transformers_saved(library: Any, tmp_path: Path) -> None:
    texts = [*TEXTS, "ein Weltraum ohne 散步 und <|user|>Hallo<|assistant|>", "<s>x</s> <|pad|>"]
    for name, theirs in variants(library, tmp_path):
        theirs.save_pretrained(tmp_path / name)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        one = ours.load(tmp_path / name)
        same(one, theirs, texts)
        (tmp_path / f"{name} again").mkdir()
        one.save(tmp_path / f"{name} again")
        same(one, transformers.AutoTokenizer.from_pretrained(tmp_path / f"{name} again"), texts)


@settings(max_examples=150)
@given(st.text(max_size=40))
def test_any_text(trained: Any, text: str) -> None:
    tokenizer, folder = trained
    theirs = _theirs(folder)
    ids = tokenizer.encode(text, allow_special=True)
    assert ids.tolist() == theirs(text)["input_ids"]
    assert tokenizer.decode(ids) == theirs.decode(ids) == text


_loaded: dict[Path, Any] = {}


def _theirs(folder: Path) -> Any:
    if folder not in _loaded:
        _loaded[folder] = transformers.AutoTokenizer.from_pretrained(folder)
    return _loaded[folder]


def test_a_long_text_in_pieces(trained: Any) -> None:
    """Ours cuts it and encodes the pieces in threads: the ids are those of the whole."""
    text = "\n".join(np.random.default_rng(0).permutation(TEXTS * 60))
    ids = trained[0].encode(text, allow_special=True).tolist()
    assert len(text) > 30_000
    assert ids == _theirs(trained[1])(text)["input_ids"]


def test_any_ids_are_one_text(trained: Any) -> None:
    tokenizer, folder = trained
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, tokenizer.vocab_size, rng.integers(1, 30))
        assert tokenizer.decode(ids) == _theirs(folder).decode(ids)


def test_model_and_tokenizer_in_one_folder(trained: Any, tmp_path: Path) -> None:
    """Text in, text out, on both sides from the files of one save_pretrained."""
    tokenizer = trained[0]
    model = make_ours(vocab_size=tokenizer.vocab_size)
    model.save_pretrained(tmp_path, tokenizer=tokenizer)
    theirs, their_tokenizer = load_theirs(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id == their_tokenizer.eos_token_id
    again = ours.load(tmp_path)
    for text in ("The quick", "今天"):
        ids = again.encode(text)[None]
        found = model.generate(ids, max_new_tokens=10, do_sample=False)
        wanted = generate_theirs(theirs, their_tokenizer(text, return_tensors="np")["input_ids"], max_new_tokens=10)
        assert again.decode(found[0]) == their_tokenizer.decode(wanted[0])


def test_on_purpose_special_tokens_in_a_text_are_text(trained: Any) -> None:
    """transformers takes the characters <|endoftext|> in any text for the token. Here only who asks for it gets it."""
    tokenizer, folder = trained
    text = "one<|endoftext|>two"
    assert tokenizer.eos_token_id in _theirs(folder)(text)["input_ids"]
    plain = tokenizer.encode(text)
    assert tokenizer.eos_token_id not in plain
    assert _theirs(folder).decode(plain) == text
    without = _theirs(folder)(text, split_special_tokens=True)["input_ids"]
    assert plain.tolist() == without


def test_on_purpose_half_a_surrogate_pair_is_refused(trained: Any) -> None:
    """It has no UTF-8. The library fails with a TypeError of its own."""
    with pytest.raises(UsageError):
        trained[0].encode("a\ud83d")
    with pytest.raises((TypeError, UnicodeEncodeError)):
        _theirs(trained[1])("a\ud83d")
