"""A tokenizer called as transformers' are: several texts, padding, truncation; and its tokens by their texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.errors import DtypeError, ShapeError, UsageError
from tinygpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

TEXTS = ["ab", "abc", "a"]


def characters(padding: bool = True) -> Tokenizer:
    tokenizer = CharTokenizer("abc", end_token=True)
    if padding:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_lists_by_default() -> None:
    tokenizer = characters()
    assert tokenizer(TEXTS) == {"input_ids": [[0, 1], [0, 1, 2], [0]], "attention_mask": [[1, 1], [1, 1, 1], [1]]}
    assert tokenizer("ab") == {"input_ids": [0, 1], "attention_mask": [1, 1]}
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}
    assert tokenizer("ab").input_ids == [0, 1]


def test_arrays_padded_on_either_side() -> None:
    tokenizer = characters()
    batch = tokenizer(TEXTS, padding=True, return_tensors="np")
    assert batch["input_ids"].tolist() == [[0, 1, 3], [0, 1, 2], [0, 3, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    tokenizer.padding_side = "left"
    assert tokenizer(TEXTS, padding="longest")["input_ids"] == [[3, 0, 1], [0, 1, 2], [3, 3, 0]]
    assert tokenizer("a", return_tensors="np").input_ids.shape == (1, 1)
    assert tokenizer([], padding=True, return_tensors="np").input_ids.shape == (0, 0)


def test_truncation_and_a_fixed_length() -> None:
    tokenizer = characters()
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=2, return_tensors="np")
    assert batch.input_ids.tolist() == [[0, 1], [0, 1], [0, 3]]
    assert tokenizer(TEXTS, truncation=True, max_length=2)["input_ids"] == [[0, 1], [0, 1], [0]]
    assert tokenizer(TEXTS, padding="max_length", max_length=4, return_tensors="np").input_ids.shape == (3, 4)


def test_a_batch_is_generated_from() -> None:
    tokenizer = characters()
    tokenizer.padding_side = "left"
    config = tg.GPTConfig(vocab_size=len(tokenizer), block_size=8, n_layer=1, n_head=1, n_embd=4)
    model, batch = tg.GPT(config).eval(), tokenizer(TEXTS, padding=True, return_tensors="np")
    out = model.generate(**batch, max_new_tokens=2, do_sample=False, pad_token_id=3)
    assert out.shape == (3, 5)
    alone = model.generate(input_ids=tokenizer("a", return_tensors="np").input_ids, max_new_tokens=2, do_sample=False)
    assert np.array_equal(out[2, 2:], alone[0])
    with pytest.raises(UsageError, match="as idx or as input_ids"):
        model.generate(max_new_tokens=2)
    with pytest.raises(UsageError, match="as idx or as input_ids"):
        model.generate(batch.input_ids, input_ids=batch.input_ids)


def test_tokens_by_their_texts() -> None:
    for tokenizer in (characters(False), ByteTokenizer(end_token=True), BPETokenizer.train("ab abc", 260)):
        assert len(tokenizer) == tokenizer.vocab_size
        assert tokenizer.eos_token == "<|endoftext|>"
        assert tokenizer.pad_token is None
        tokenizer.pad_token = tokenizer.eos_token
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        tokenizer.pad_token = "a"
        assert tokenizer.decode([tokenizer.pad_token_id]) == "a"
        tokenizer.pad_token = None
        assert tokenizer.pad_token_id is None
    assert ByteTokenizer().eos_token is None


def test_transformers_names_for_loading_and_saving(tmp_path: Any) -> None:
    characters().save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path) == BPETokenizer.from_pretrained(str(tmp_path)) == characters()


full, bare = characters(), characters(False)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: full(TEXTS, return_tensors="pt"), UsageError, ("'pt'", "return_tensors='np'")),
        (lambda: full(TEXTS, return_tensors="np"), ShapeError, ("1 to 3 tokens", "padding=True")),
        (lambda: bare(TEXTS, padding=True), UsageError, ("Asking to pad", "pad_token = tokenizer.eos_token")),
        (lambda: ByteTokenizer()(TEXTS, padding=True), UsageError, ("Asking to pad", "pad_token_id")),
        (lambda: full(TEXTS, padding="longst"), UsageError, ("padding", "'longst'", "'longest'")),
        (lambda: full(TEXTS, padding=1), UsageError, ("padding", "not 1")),
        (lambda: full(TEXTS, truncation="left"), UsageError, ("truncation", "'left'")),
        (lambda: full(TEXTS, truncation=True), UsageError, ("truncation=True needs max_length", "block_size")),
        (lambda: full(TEXTS, padding="max_length"), UsageError, ("padding='max_length' needs max_length",)),
        (lambda: full(TEXTS, max_length=2), UsageError, ("max_length=2", "truncation=True")),
        (lambda: full(TEXTS, truncation=True, max_length=0), UsageError, ("max_length", "at least 1")),
        (lambda: full(3), DtypeError, ("list of texts", "int")),
        (lambda: full(["a", 3]), DtypeError, ("entry 1", "int")),
        (lambda: full([["a"]]), DtypeError, ("entry 0", "list")),
        (lambda: setattr(full, "pad_token", "abc"), UsageError, ("pad_token", "'abc'", "3")),
    ],
)
def test_a_wrong_use_is_one_sentence(call: Callable[[], Any], error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_padding_side_and_field() -> None:
    tokenizer = characters()
    tokenizer.padding_side = "middle"
    with pytest.raises(UsageError, match="padding_side must be 'right' or 'left', not 'middle'"):
        tokenizer("a")
    with pytest.raises(AttributeError, match="input_ids and attention_mask, not token_type_ids"):
        _ = characters()("a").token_type_ids
