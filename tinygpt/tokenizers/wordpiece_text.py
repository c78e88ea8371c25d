"""How BERT cleans a text before it is split into pieces, and where pieces are joined without a space.

The rules are those of the library `tokenizers` (BertNormalizer, BertPreTokenizer), whose Unicode tables are older than
Python's: more recent characters, in rare scripts, may count as punctuation or accents in only one of the two.
"""

from __future__ import annotations

import string
import unicodedata

_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_BLANK = "\t\n\r"


def is_chinese(character: str) -> bool:
    """Whether BERT regards this character as Chinese: an ideograph, not kana, hangul or punctuation."""
    code = ord(character)
    return any(first <= code <= last for first, last in _CHINESE)


def is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


# Full-width punctuation is as wide as a character: it has no space on either side.
_FULL_WIDTH = [
    character
    for character in map(chr, (*range(0x3000, 0x3040), *range(0xFF01, 0xFF61), *range(0x2010, 0x2027), 0xB7))
    if is_punctuation(character)  # with the dashes, dots and quotation marks of Chinese texts
]
# All are punctuation, which is a separate word with or without spaces.
NO_SPACE_BEFORE = frozenset([*_FULL_WIDTH, *".,!?;:)]}%'-/_@"])
NO_SPACE_AFTER = frozenset([*_FULL_WIDTH, *"([{$#'-/_@"])


class _Clean(dict[int, str | None]):
    """For str.translate: removes control characters, makes white space spaces, separates Chinese characters."""

    def __init__(self, chinese: bool) -> None:
        self._chinese = chinese

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        found: str | None = character
        if character in _BLANK or (character.isspace() and unicodedata.category(character) != "Cc"):
            found = " "
        elif code in (0, 0xFFFD) or unicodedata.category(character) in ("Cc", "Cf", "Co"):
            found = None
        elif self._chinese and is_chinese(character):
            found = f" {character} "
        self[code] = found
        return found


class _Split(dict[int, str | None]):
    """For str.translate: removes accents and capitals on request, and separates punctuation.

    It works on single characters, because `str.lower` treats a sigma at the end of a word differently.
    """

    def __init__(self, lowercase: bool, removes_accents: bool) -> None:
        self._lowercase, self._removes_accents = lowercase, removes_accents

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        found: str | None = character.lower() if self._lowercase else character
        if self._removes_accents and unicodedata.category(character) == "Mn":
            found = None
        elif is_punctuation(character):
            found = f" {found} "
        self[code] = found
        return found


class Cleaner:
    """A text with its words separated by spaces."""

    def __init__(self, lowercase: bool, removes_accents: bool, chinese: bool) -> None:
        self._clean, self._split = _Clean(chinese), _Split(lowercase, removes_accents)
        self._removes_accents = removes_accents

    def __call__(self, text: str) -> str:
        text = text.translate(self._clean)
        if self._removes_accents and not text.isascii():
            text = unicodedata.normalize("NFD", text)
        return text.translate(self._split)
