"""Training of byte-level BPE: what is learnt from, in pieces of a bounded size.

The library counts the words of the texts, and then merges the most frequent pair of neighbours again and again. A text
that it gets as one takes 90 times its size while its words are counted, and a merge moves everything behind it in its
word: a word of a megabyte (a genome, base64, a page of blanks) would take days. So a text comes in chunks that are cut
between words, which changes no count; and a stretch of more than `_LONGEST` characters without any white space, or of
nothing else, is cut every `_LONGEST` characters, which costs one pair of neighbours in a thousand, there alone.
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

MOST_TOKENS = 10_000_000  # the library reserves room for all of them at once, and ends the process where there is none
_CHUNK, _LONGEST = 1 << 14, 1000
_LONG = re.compile(rf"\S{{{_LONGEST + 1},}}|\s{{{_LONGEST + 1},}}")


def check_training(vocab_size: Any, special_tokens: Any) -> tuple[int, tuple[str, ...]]:
    if isinstance(special_tokens, str):
        raise DtypeError(f"BPETokenizer.train: special_tokens is a list of texts, not the text {special_tokens!r}")
    special = tuple(special_tokens)
    for token in special:
        if not text_bytes(token, "utf-8") or special.count(token) > 1:
            raise UsageError(f"BPETokenizer.train: special tokens must be distinct and not empty, not {special!r}")
    least = 256 + len(special)
    size = whole_number("BPETokenizer.train", "vocab_size", vocab_size, at_least=least)
    if size > MOST_TOKENS:
        raise RangeError(f"BPETokenizer.train: vocab_size must be at most {MOST_TOKENS:,}, not {size:,}")
    return size, special


def checked(texts: str | Iterable[str]) -> Iterator[str]:
    empty = True
    for text in [texts] if isinstance(texts, str) else texts:
        empty = not text_bytes(text, "utf-8") and empty
        yield text
    if empty:
        raise UsageError("BPETokenizer.train: the text is empty: there is nothing to learn merges from")


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """The same texts in pieces of a bounded size, cut between words wherever words are not very long."""
    for text in texts:
        for chunk in chunks(text, _CHUNK):
            begin = 0
            for place in _cuts(chunk):
                yield chunk[begin:place]
                begin = place
            yield chunk[begin:]


def _cuts(text: str) -> Iterator[int]:
    """Where the long stretches of the text are cut: before a pause if there is one."""
    for stretch in _LONG.finditer(text):
        place = stretch.start()
        while stretch.end() - place > _LONGEST:
            end = place + _LONGEST
            pause = max(text.rfind(mark, place + 1, end) for mark in PAUSES)
            place = pause if pause > 0 else end
            yield place


def train(texts: Iterator[str], vocab_size: int, min_frequency: int) -> dict[str, Any]:
    """The model of a tokenizer.json: vocabulary and merges without special tokens, byte 0 with id 0."""
    of = tokenizers()
    library = of.Tokenizer(of.models.BPE())
    library.pre_tokenizer = of.pre_tokenizers.ByteLevel(add_prefix_space=BYTE_LEVEL["add_prefix_space"])
    trainer = of.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min(min_frequency, 2**63), initial_alphabet=list(byte_of_character()),
        show_progress=False,
    )  # fmt: skip
    with explain("BPETokenizer.train: "):
        library.train_from_iterator(bounded(texts), trainer)
    model: dict[str, Any] = json.loads(library.to_str())["model"]
    return model
