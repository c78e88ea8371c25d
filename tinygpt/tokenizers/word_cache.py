"""Byte-level BPE of a long text, each different word encoded once.

GPT-2's scheme splits a text into words and merges inside words only, so the ids of a text are those of its words, one
after the other, and a text has few different words. The library encodes those that are new, on all cores; all others
are looked up. The split is made here, by Python's `re`:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

where `re` has no \\p{L} and \\p{N}, but `[^\\W\\d_]` and `\\d`. They agree on all characters but those of `awkward()`:
numbers that are no digits, what Python takes for white space and the library doesn't, and letters that either side's
version of Unicode may not know. A part of the text with one of these goes to the library whole.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

import numpy as np

from .pieces import chunks

_CHUNK = 1 << 14  # characters: what goes to the library for one awkward character
_MOST_WORDS = 1 << 18  # words kept, about 40 MB
_LONGEST_WORD = 64  # characters: longer ones hardly come again
# Where more than half of the words of a part are new although many are known, the library is faster on the whole part:
# in Chinese, whose "words" are clauses.
_NEW, _MANY = 0.5, 1 << 15
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
_AWKWARD_ASCII = re.compile("[\x1c-\x1f]")


@functools.cache
def awkward() -> re.Pattern[str]:
    """Matches a character that `_WORD` may sort differently from the library."""
    old = unicodedata.ucd_3_2_0
    found = [code for code in range(0x110000) if _is_awkward(chr(code), unicodedata.category(chr(code)), old)]
    starts = [code for code, before in zip(found, [-2, *found], strict=False) if code != before + 1]
    ends = [code for code, after in zip(found, [*found[1:], -2], strict=True) if code + 1 != after]
    ranges = (f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in zip(starts, ends, strict=True))
    return re.compile(f"[{''.join(ranges)}]")


def _is_awkward(character: str, category: str, old: Any) -> bool:
    if category[0] in "LN":
        return category in ("No", "Nl") or old.category(character)[0] != category[0]
    return category == "Cn" or "\x1c" <= character <= "\x1f"


class WordCache:
    """Encodes long texts as `library` does: a tokenizer of the library `tokenizers` with GPT-2's scheme."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._ids: dict[str, bytes] = {}  # word -> its ids, int32

    def encode(self, text: str) -> np.ndarray:
        """The ids: int64, shape (T,)."""
        if len(self._ids) > _MOST_WORDS:
            self._ids = {}
        known = self._ids  # another thread may begin a new one
        parts = [(part, self._words(part)) for part in chunks(text, _CHUNK)]
        new = list(set[str]().union(*(words for _, words in parts)).difference(known))
        whole = [part for part, words in parts if not words]
        encodings = self._library.encode_batch_fast([*new, *whole], add_special_tokens=False)
        ids = [np.array(encoding.ids, "<i4").tobytes() for encoding in encodings]
        found = dict(zip(new, ids, strict=False))
        known.update((word, its) for word, its in found.items() if len(word) <= _LONGEST_WORD)
        long = {word: its for word, its in found.items() if len(word) > _LONGEST_WORD}
        rest = iter(ids[len(new) :])
        joined = [_joined(words, known, long) if words else next(rest) for _, words in parts]
        return np.frombuffer(b"".join(joined), "<i4").astype(np.int64)

    def _words(self, text: str) -> list[str]:
        """The words of a text; none if the library should split it."""
        if (_AWKWARD_ASCII if text.isascii() else awkward()).search(text):
            return []
        words = _WORD.findall(text)
        if len(self._ids) > _MANY and len(set(words).difference(self._ids)) > _NEW * len(words):
            return []
        return words


def _joined(words: list[str], known: dict[str, bytes], long: dict[str, bytes]) -> bytes:
    """The ids of the words, one after the other."""
    if long.keys().isdisjoint(words):
        return b"".join(map(known.__getitem__, words))
    return b"".join(long[word] if word in long else known[word] for word in words)
