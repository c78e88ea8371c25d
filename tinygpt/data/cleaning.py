"""Clean documents and count the changes: Unicode NFC, control characters, exact and near duplicates.

    cleaning = Cleaning(("nfc", "control", "duplicates"))
    for piece in cleaning(Documents("books/")): ...
    str(cleaning)                                # "12 control characters removed, 3 exact duplicates left out"

Near duplicates are found by MinHash. A document is the set of its 5-grams of words. For each of 64 hash functions, take
the smallest value over the set: the share of the 64 values that two documents have in common estimates the Jaccard
similarity of the sets. Candidates agree in a band of 8 adjacent values; they are compared in all 64, and if the
similarity is at least 0.8 the later one is left out.
Source: Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from ..errors import UsageError
from ..tokenizers.word import SINGLE
from .documents import Piece

KINDS = ("nfc", "control", "duplicates", "near-duplicates")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # line breaks and tabs are text
_LONGEST = 1 << 24  # characters: longer documents are not kept in memory for comparison
_WORD = re.compile(rf"[{SINGLE}]|\w+")  # Chinese and Japanese: a character is a word
_RUN, _HASHES, _BAND, _SIMILAR = 5, 64, 8, 0.8
_HASH = np.random.default_rng(20240520).integers(1, 1 << 63, (2, _HASHES), dtype=np.uint64) | np.uint64(1)


class Cleaning:
    """Cleans documents; `counts` has the number of changes of each kind in the last pass."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self.kinds = tuple(kinds)
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise UsageError(f"there is no cleaning {unknown[0]!r}: give some of {', '.join(KINDS)}")
        self.counts = dict.fromkeys(self.kinds, 0)

    def __str__(self) -> str:
        words = {
            "nfc": "{:,} documents changed by Unicode NFC", "control": "{:,} control characters removed",
            "duplicates": "{:,} exact duplicates left out", "near-duplicates": "{:,} near duplicates left out",
        }  # fmt: skip
        return ", ".join(words[kind].format(count) for kind, count in self.counts.items())

    def __call__(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The documents, cleaned. Documents of more than 2**24 characters are not compared with others."""
        self.counts = dict.fromkeys(self.kinds, 0)
        if "control" in self.kinds:
            pieces = self._without_control(pieces)
        if "nfc" in self.kinds:
            pieces = self._composed(pieces)
        pieces = _nonempty(pieces)
        if "duplicates" in self.kinds or "near-duplicates" in self.kinds:
            pieces = self._distinct(pieces)
        yield from pieces

    def _without_control(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            text, count = _CONTROL.subn("", piece.text)
            self.counts["control"] += count
            yield Piece(text, piece.last)

    def _composed(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        held, changed = "", False
        for piece in pieces:
            text = held + piece.text
            end = len(text) if piece.last else _safe_end(text)
            held = text[end:]
            done = unicodedata.normalize("NFC", text[:end])
            changed = changed or done != text[:end]
            if done or piece.last:
                yield Piece(done, piece.last)
            if piece.last:
                self.counts["nfc"] += changed
                changed = False

    def _distinct(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        seen: set[bytes] = set()
        similar = _Similar()
        for document, whole in _whole(pieces):
            if not (whole and self._was_there("".join(piece.text for piece in document), seen, similar)):
                yield from document

    def _was_there(self, text: str, seen: set[bytes], similar: _Similar) -> bool:
        if "duplicates" in self.kinds:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest in seen:
                self.counts["duplicates"] += 1
                return True
            seen.add(digest)
        if "near-duplicates" in self.kinds and similar.has(text):
            self.counts["near-duplicates"] += 1
            return True
        return False


def _nonempty(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Drop empty pieces, and documents that have no others."""
    held = None
    for piece in pieces:
        if held is not None and piece.text:
            yield Piece(held, False)
            held = None
        if piece.text:
            held = piece.text
        if piece.last:
            if held is not None:
                yield Piece(held, True)
            held = None


def _safe_end(text: str) -> int:
    """Where a text can be cut without changing its composition: before a character that never composes."""
    for position in range(len(text) - 1, 0, -1):
        if text[position].isascii() or "\u4e00" <= text[position] <= "\u9fff":
            return position
    return 0


def _whole(pieces: Iterable[Piece]) -> Iterator[tuple[list[Piece], bool]]:
    """The pieces of each document together, with True; those of a very long one as they arrive, with False."""
    held: list[Piece] = []
    length, long = 0, False
    for piece in pieces:
        held.append(piece)
        length += len(piece.text)
        long = long or length > _LONGEST
        if piece.last or long:
            yield held, not long
            held = []
        if piece.last:
            length, long = 0, False


class _Similar:
    """The documents that were kept, as 64 numbers each: 256 bytes, and about as much again for the index."""

    def __init__(self) -> None:
        self._signatures: list[np.ndarray] = []
        self._bands: dict[bytes, list[int]] = {}

    def has(self, text: str) -> bool:
        """Whether a similar document was seen before; if not, this one is remembered."""
        signature = _signature(text)  # (64,) uint32
        bands = [bytes([number]) + band.tobytes() for number, band in enumerate(signature.reshape(-1, _BAND))]
        for candidate in {index for band in bands for index in self._bands.get(band, ())}:
            if float((self._signatures[candidate] == signature).mean()) >= _SIMILAR:
                return True
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._signatures))
        self._signatures.append(signature)
        return False


def _signature(text: str) -> np.ndarray:
    """The smallest value of each hash function over the 5-grams of words: uint32, (64,)."""
    words = _WORD.findall(text.lower()) or [text]
    codes = {word: zlib.crc32(word.encode()) for word in set(words)}
    hashes = np.array([codes[word] for word in words], np.uint64)
    count = max(1, len(hashes) - _RUN + 1)
    runs = np.zeros(count, np.uint64)
    for offset in range(min(_RUN, len(hashes))):
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + count]
    runs = np.unique(runs)
    smallest = np.full(_HASHES, np.iinfo(np.uint64).max)
    for begin in range(0, len(runs), 1 << 12):
        mixed = runs[begin : begin + (1 << 12), None] * _HASH[0] + _HASH[1]  # (n, 64)
        smallest = np.minimum(smallest, mixed.min(axis=0))
    return (smallest >> np.uint64(32)).astype(np.uint32)
