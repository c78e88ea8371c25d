"""The end token of bytes and characters: one more id, which no text encodes to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinygpt import tokenizers
from tinygpt.errors import RangeError
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer, StreamDecoder, Tokenizer


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(end_token=True), CharTokenizer("<|>abdefnotxé", end_token=True)])
def test_end_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_token_id
    assert end == tokenizer.vocab_size - 1 == tokenizer.ids_of_texts
    assert tokenizer.special_ids == {end}
    text = "é<|endoftext|>a"
    ids = tokenizer.encode(text)
    assert end not in ids
    both = np.concatenate([[end], ids, [end, end], ids[:2]])
    shown = "<|endoftext|>"
    two = tokenizer.decode(ids[:2])
    assert tokenizer.decode(both) == shown + text + shown * 2 + two
    assert tokenizer.token_bytes(both).decode() == shown + text + shown * 2 + two
    assert tokenizer.decode(both, skip_special_tokens=True) == text + two
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.feed, both)) + stream.finish() == tokenizer.decode(both)
    with pytest.raises(RangeError, match=f"the id {end + 1} at position 0"):
        tokenizer.decode([end + 1])
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path) == tokenizer
    assert eval(repr(tokenizer), {type(tokenizer).__name__: type(tokenizer)}) == tokenizer


def test_without_it_nothing_changes() -> None:
    assert ByteTokenizer().config() == {}
    assert ByteTokenizer() != ByteTokenizer(end_token=True)
    assert "end_token" not in CharTokenizer("ab").config()
    assert CharTokenizer("ab") != CharTokenizer("ab", end_token=True)
