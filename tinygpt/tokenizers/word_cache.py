"""Byte-level BPE of texts, encoding each distinct word once.

GPT-2's scheme splits a text into words and merges only inside words, so the ids of a text are those of its words, one
after the other, and a text has few distinct words. The library encodes new words, on all cores; all others are looked
up. The split is made here, with Python's `re`:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

where `re` has no \\p{L} and \\p{N}, but `[^\\W\\d_]` and `\\d`. They agree on all characters but those of `awkward()`:
numerals that are not digits, characters that only Python regards as white space, and letters that one side's version of
Unicode may not know. A part of the text with one of these is encoded by the library as a whole.

`_ext/text/word_table.pyx` does the same in native code, ten times faster and on all cores. The text is split into parts
at the same positions whatever the number of cores, and each part's ids are written where they belong.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..kernel import compiled_part
from .base import text_bytes
from .byte_characters import byte_of_character
from .pieces import chunks

_CHUNK = 1 << 14  # characters: the part that the library encodes because of one awkward character
_BLOCK = 1 << 20  # characters that are encoded together
_MOST_WORDS = 1 << 18  # words kept, about 40 MB; compiled, 20 MB
_MOST_CHARACTERS = 1 << 23  # in all words that are kept
_LONGEST_WORD = 64  # characters: longer ones are unlikely to recur
# If more than half of the words of a part are new although many are known, the library encodes the whole part faster:
# in Chinese, for example, whose "words" are clauses.
_NEW, _MANY = 0.5, 1 << 15
_LETTERS, _DIGITS, _OTHERS = r"[^\W\d_]+", r"\d+", r"(?:[^\s\w]|_)+"
_WORD = re.compile(rf"'(?:[stmd]|re|ve|ll)| ?{_LETTERS}| ?{_DIGITS}| ?{_OTHERS}|\s+(?!\S)|\s+")
_ASCII_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
_AWKWARD_ASCII = re.compile("[\x1c-\x1f]")
_CODES = 0x110000
_AWKWARD = 4  # the class of awkward characters


@functools.cache
def awkward() -> re.Pattern[str]:
    """Matches a character that `_WORD` may classify differently from the library."""
    found = _awkward_codes()
    starts = [code for code, before in zip(found, [-2, *found], strict=False) if code != before + 1]
    ends = [code for code, after in zip(found, [*found[1:], -2], strict=True) if code + 1 != after]
    ranges = (f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in zip(starts, ends, strict=True))
    return re.compile(f"[{''.join(ranges)}]")


@functools.cache
def _awkward_codes() -> list[int]:
    old = unicodedata.ucd_3_2_0.category
    return [
        code
        for code, category in enumerate(map(unicodedata.category, map(chr, range(_CODES))))
        if category in ("Cn", "No", "Nl")
        or (category[0] in "LN" and old(chr(code))[0] != category[0])
        or 0x1C <= code <= 0x1F
    ]


@functools.cache
def classes(ascii_only: bool) -> np.ndarray:
    """The class of each character for `_WORD`: uint8, (0x110000,). ascii_only: only ASCII is classified."""
    characters = "".join(map(chr, range(128 if ascii_only else _CODES)))
    found = np.zeros(_CODES, np.uint8)  # the others
    for number, rule in enumerate([_LETTERS, _DIGITS, r"\s+"], 1):
        for run in re.finditer(rule, characters):
            found[run.start() : run.end()] = number
    found[[0x1C, 0x1D, 0x1E, 0x1F] if ascii_only else _awkward_codes()] = _AWKWARD
    return found


def merges_of(model: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """The token of each byte, int32 (256,), and the merges, int32 (M, 3): left, right, what they make. None for a model
    that does more than merge."""
    if any(model.get(key) for key in ("dropout", "fuse_unk", "byte_fallback", "ignore_merges")):
        return None
    ids, names = model["vocab"], sorted(byte_of_character(), key=byte_of_character().__getitem__)
    if not ids.keys() >= set(names):  # a byte may be an added token
        return None
    merges = [(ids[left], ids[right], ids[left + right]) for left, right in model["merges"]]
    return np.array([ids[name] for name in names], np.int32), np.array(merges, np.int32).reshape(-1, 3)


class WordCache:
    """Encodes texts as `library` does: a tokenizer of the library `tokenizers` with GPT-2's scheme."""

    def __init__(self, library: Any, model: dict[str, Any]) -> None:
        """model: the part of a tokenizer.json."""
        self._library, self._model = library, model
        self._ids: dict[str, bytes] = {}  # word -> its ids, int32
        self._table: Any = None  # the compiled one, made on first use
        self._alone = threading.Lock()  # native code reads the table without Python's lock

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, pickled or not, begins without words."""
        return type(self), (self._library, self._model)

    def encode(self, text: str) -> np.ndarray:
        """The ids: int64, shape (T,)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text: int64, shape (T,)."""
        parts = [chunks(text, _CHUNK) for text in texts]
        found = [self._encode(block) for block in _blocks(itertools.chain.from_iterable(parts))]
        ids = np.concatenate([ids for ids, _ in found])
        counts = np.concatenate([counts for _, counts in found])  # of each part
        last = np.cumsum([len(of_text) for of_text in parts]) - 1
        return np.split(ids, np.cumsum(counts)[last[:-1]])

    def _encode(self, parts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all parts, int64, and how many each has."""
        make = compiled_part("WordTable")
        if make is None or sum(map(len, parts)) >= 1 << 30:  # lengths are in 32 bits there
            return self._encode_here(parts)
        with self._alone:
            if self._table is None:
                self._table = make(*(merges_of(self._model) or ()))
            return self._encode_compiled(parts)

    def _encode_compiled(self, parts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        table, text = self._table, "".join(parts)
        if len(table) > _MOST_WORDS or table.characters > _MOST_CHARACTERS:
            table.clear()
        codes, ends = text_bytes(text, "utf-32-le"), np.cumsum([len(part) for part in parts])
        found, counts = table.find(codes, classes(text.isascii()), ends)
        words, unknown, tokens = counts
        to_library = (words < 0) | ((unknown > _NEW * words) & (len(table) > _MANY))
        words[to_library] = unknown[to_library] = 0
        new = list({text[begin:end] for begin, end in table.missing(ends, found, counts)})
        whole = np.flatnonzero(to_library).tolist()
        new.sort(key=len)
        own = bisect.bisect(new, _LONGEST_WORD, key=len) if table.merges else 0  # these the table merges
        ids = self._by_library([*new[own:], *(parts[index] for index in whole)])
        table.add(new, [*[None] * own, *ids[: len(new) - own]])
        table.settle(codes, ends, found, counts)
        ids = ids[len(new) - own :]
        tokens[whole] = [len(its) for its in ids]
        starts = np.cumsum(tokens) - tokens
        out = np.empty(int(tokens.sum()), np.int64)
        table.copy(ends, found, counts, starts, out)
        for index, its in zip(whole, ids, strict=True):
            out[starts[index] : starts[index] + len(its)] = its
        return out, tokens

    def _encode_here(self, parts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if len(self._ids) > _MOST_WORDS:
            self._ids = {}
        known = self._ids  # another thread may start a new one
        split = [self._words(part) for part in parts]
        new = list(set[str]().union(*split).difference(known))
        whole = [part for part, words in zip(parts, split, strict=True) if not words]
        ids = [np.array(its, "<i4").tobytes() for its in self._by_library([*new, *whole])]
        found = dict(zip(new, ids, strict=False))
        known.update((word, its) for word, its in found.items() if len(word) <= _LONGEST_WORD)
        long = {word: its for word, its in found.items() if len(word) > _LONGEST_WORD}
        rest = iter(ids[len(new) :])
        joined = [_joined(words, known, long) if words else next(rest) for words in split]
        counts = np.array([len(its) // 4 for its in joined], np.int64)
        return np.frombuffer(b"".join(joined), "<i4").astype(np.int64), counts

    def _by_library(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def _words(self, text: str) -> list[str]:
        """The words of a text; none if the library should split it."""
        if (_AWKWARD_ASCII if text.isascii() else awkward()).search(text):
            return []
        words = (_ASCII_WORD if text.isascii() else _WORD).findall(text)
        if len(self._ids) > _MANY and len(set(words).difference(self._ids)) > _NEW * len(words):
            return []
        return words


def _blocks(parts: Iterator[str]) -> Iterator[list[str]]:
    """The parts in lists of about _BLOCK characters; at least one list."""
    block: list[str] = []
    size = 0
    for part in parts:
        block.append(part)
        size += len(part)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _joined(words: list[str], known: dict[str, bytes], long: dict[str, bytes]) -> bytes:
    """The ids of the words, one after the other."""
    if long.keys().isdisjoint(words):
        return b"".join(map(known.__getitem__, words))
    return b"".join(long[word] if word in long else known[word] for word in words)
