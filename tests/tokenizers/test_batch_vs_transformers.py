"""A tokenizer called with several texts, beside transformers': ids, masks, padding on either side, truncation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import transformers
from tinygpt.errors import ShapeError
from tinygpt.tokenizers import BPETokenizer

TEXTS = ["the cat sat on the mat", "the", "a longer text: the cat sat on the mat, and on the mat it sat", ""]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"padding": True},
    {"padding": "longest", "truncation": True, "max_length": 6},
    {"padding": "max_length", "max_length": 40},
    {"padding": "max_length", "truncation": True, "max_length": 5},
    {"truncation": True, "max_length": 3},
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[BPETokenizer, Any]:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    ours = BPETokenizer.train(TEXTS * 3, vocab_size=300)
    ours.save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for tokenizer in (ours, theirs):
        tokenizer.pad_token = tokenizer.eos_token
    return ours, theirs


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_lists_and_arrays(both: tuple[BPETokenizer, Any], options: dict[str, Any], side: str) -> None:
    ours, theirs = both
    ours.padding_side = theirs.padding_side = side
    for texts in (TEXTS, TEXTS[0]):
        a, b = ours(texts, **options), theirs(texts, **options)
        assert a == {name: b[name] for name in ("input_ids", "attention_mask")}
        if isinstance(texts, str) or options.get("padding"):
            a, b = ours(texts, **options, return_tensors="np"), theirs(texts, **options, return_tensors="np")
            for name in ("input_ids", "attention_mask"):
                assert np.array_equal(a[name], b[name])
                assert a[name].shape == b[name].shape


def test_tokens_and_sizes(both: tuple[BPETokenizer, Any]) -> None:
    ours, theirs = both
    assert len(ours) == len(theirs)
    for name in ("bos_token", "eos_token", "pad_token", "pad_token_id", "eos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_both_refuse_to_pad_without_a_padding_token(tmp_path: Path) -> None:
    bare = BPETokenizer.train(TEXTS, vocab_size=260)
    bare.save(tmp_path)
    for tokenizer in (bare, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="Asking to pad but the tokenizer does not have a padding token"):
            tokenizer(TEXTS, padding=True)


def test_on_purpose_rows_of_several_lengths_are_no_array(both: tuple[BPETokenizer, Any]) -> None:
    """transformers makes an array of lists, which fails later, inside the model."""
    ours, theirs = both
    assert theirs(TEXTS, return_tensors="np")["input_ids"].dtype == object
    with pytest.raises(ShapeError, match="add padding=True"):
        ours(TEXTS, return_tensors="np")


def test_on_purpose_a_special_token_in_a_text_is_text(both: tuple[BPETokenizer, Any]) -> None:
    """transformers makes it the special token: a user's text could end the document. `encode_special` does so here."""
    ours, theirs = both
    text = f"a{theirs.eos_token}b"
    assert theirs.eos_token_id in theirs(text)["input_ids"]
    assert ours.eos_token_id not in ours(text)["input_ids"]
    assert ours.encode_special(text).tolist() == theirs(text)["input_ids"]


def test_a_batch_of_theirs_is_one_of_ours(both: tuple[BPETokenizer, Any]) -> None:
    ours, theirs = both
    assert isinstance(theirs(TEXTS), transformers.BatchEncoding)
    assert ours(TEXTS).input_ids == theirs(TEXTS).input_ids
