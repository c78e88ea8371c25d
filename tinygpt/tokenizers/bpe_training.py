"""Byte-level BPE training, fed to the library in pieces of bounded size.

The library counts the words of the texts, then repeatedly merges the most frequent adjacent pair. Counting the words
of a text passed in one piece takes 90 times the text's memory, and each merge shifts the rest of its word: a word of a
megabyte (a genome, base64, a page of blanks) would take days. So the text is passed in chunks split between words,
which changes no count. A run of more than `_LONGEST` characters that are all white space, or none of them, is split
every `_LONGEST` characters; that loses one adjacent pair in a thousand, and only in such runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..checks import whole_number
from ..errors import DtypeError, RangeError, UsageError
from .base import text_bytes
from .bpe_files import BYTE_LEVEL
from .byte_characters import byte_of_character
from .hf_tokenizers import explain, tokenizers
from .pieces import PAUSES, chunks

MAX_TOKENS = 10_000_000  # the library allocates them all at once, and aborts the process if it can't
_CHUNK, _LONGEST = 1 << 14, 1000
_LONG = re.compile(rf"\S{{{_LONGEST + 1},}}|\s{{{_LONGEST + 1},}}")


def check_training(vocab_size: Any, special_tokens: Any) -> tuple[int, tuple[str, ...]]:
    if isinstance(special_tokens, str):
        raise DtypeError(
            f"BPETokenizer.train: special_tokens must be a list of strings, not the string {special_tokens!r}"
        )
    special = tuple(special_tokens)
    for token in special:
        if not text_bytes(token, "utf-8") or special.count(token) > 1:
            raise UsageError(f"BPETokenizer.train: special tokens must be distinct and not empty, not {special!r}")
    least = 256 + len(special)
    size = whole_number("BPETokenizer.train", "vocab_size", vocab_size, at_least=least)
    if size > MAX_TOKENS:
        raise RangeError(f"BPETokenizer.train: vocab_size must be at most {MAX_TOKENS:,}, not {size:,}")
    return size, special


def checked(texts: str | Iterable[str]) -> Iterator[str]:
    empty = True
    for text in [texts] if isinstance(texts, str) else texts:
        empty = not text_bytes(text, "utf-8") and empty
        yield text
    if empty:
        raise UsageError("BPETokenizer.train: the text is empty, so there is nothing to learn merges from: give a text")


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """Re-split texts into pieces of bounded size, between words unless a word is very long."""
    for text in texts:
        for chunk in chunks(text, _CHUNK):
            begin = 0
            for position in _split_points(chunk):
                yield chunk[begin:position]
                begin = position
            yield chunk[begin:]


def _split_points(text: str) -> Iterator[int]:
    """Positions at which long runs of the text are split: before a pause if there is one."""
    for run in _LONG.finditer(text):
        position = run.start()
        while run.end() - position > _LONGEST:
            end = position + _LONGEST
            pause = max(text.rfind(character, position + 1, end) for character in PAUSES)
            position = pause if pause > 0 else end
            yield position


def train(texts: Iterator[str], vocab_size: int, min_frequency: int) -> dict[str, Any]:
    """Train the "model" part of a tokenizer.json: vocabulary and merges without special tokens, byte 0 with id 0."""
    hf = tokenizers()
    library = hf.Tokenizer(hf.models.BPE())
    library.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=BYTE_LEVEL["add_prefix_space"])
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min(min_frequency, 2**63), initial_alphabet=list(byte_of_character()),
        show_progress=False,
    )  # fmt: skip
    with explain("BPETokenizer.train: "):
        library.train_from_iterator(bounded(texts), trainer)
    model: dict[str, Any] = json.loads(library.to_str())["model"]
    return model
