"""A character-level tokenizer, whose small vocabulary is taken from the training text.

A prompt may well contain a character that the training text did not, such as an accented letter. The
`unknown` argument determines what `encode` does then:

    unknown="error"     raise UnknownCharacterError, which names the character and its position (the default)
    unknown="skip"      drop it
    unknown="replace"   use `replacement`, a character of the vocabulary, instead

Encoding and decoding are each one table lookup for the whole text: in UTF-32 every character is one
32-bit code point, and a table indexed by code point gives the id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from ..errors import RangeError, UsageError
from .base import Tokenizer, bytes_around, check_ids, text_bytes

POLICIES = ("error", "skip", "replace")


class UnknownCharacterError(RangeError):
    """A character is not in the vocabulary. Attributes: `character`, its `position` in the text, and `vocab_size`."""

    def __init__(self, character: str, position: int, vocab_size: int, source: str = "the text") -> None:
        self.character, self.position, self.vocab_size = character, position, vocab_size
        super().__init__(
            f"the character {character!r} (U+{ord(character):04X}) at position {position} of {source} is not "
            f"one of the {vocab_size} that this tokenizer knows: remove it, build the tokenizer from a text "
            "that contains it (CharTokenizer.from_text), or choose unknown='skip' or unknown='replace'"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # the default would rebuild it from its message alone
        return type(self), (self.character, self.position, self.vocab_size)


class CharTokenizer(Tokenizer):
    """The id of a character is its index in `characters`.

    end_token: the next id ends a document. No text encodes to it.
    """

    type = "character"

    def __init__(
        self, characters: str, unknown: str = "error", replacement: str | None = None, end_token: bool = False
    ) -> None:
        self._codes = _code_points(characters)  # (V,) id -> code point
        if not characters:
            raise UsageError("a CharTokenizer needs at least one character, but the text is empty")
        if len(set(characters)) != len(characters):
            raise UsageError(
                "a CharTokenizer needs distinct characters: collect them from a text with CharTokenizer.from_text"
            )
        self.characters = characters
        self.unknown = unknown
        self.replacement = replacement
        self._check_policy()
        if end_token:
            self.eos_token_id, self.special_ids = len(characters), frozenset({len(characters)})
        # One extra entry after the largest code point: every larger code point is clipped to it and gets -1.
        self._ids = np.full(int(self._codes.max()) + 2, -1, dtype=np.int32)
        self._ids[self._codes] = np.arange(len(characters), dtype=np.int32)

    @classmethod
    def from_text(cls, text: str | Iterable[str], unknown: str = "error", replacement: str | None = None) -> Self:
        """Build a tokenizer from the distinct characters of `text`, in code-point order; `text` may come in pieces.

        `CharTokenizer.from_text(tinygpt.data.read_text(path))` never holds the whole file in memory.
        """
        found: set[str] = set()
        for piece in [text] if isinstance(text, str) else text:
            found.update(piece)
        return cls("".join(sorted(found)), unknown, replacement)

    def _check_policy(self) -> None:
        if self.unknown not in POLICIES:
            raise UsageError(f"unknown must be one of {', '.join(POLICIES)}, not {self.unknown!r}")
        if self.unknown != "replace":
            if self.replacement is not None:
                raise UsageError(
                    f"replacement={self.replacement!r} can be used only with unknown='replace', "
                    f"not with unknown={self.unknown!r}"
                )
        elif not (
            isinstance(self.replacement, str) and len(self.replacement) == 1 and self.replacement in self.characters
        ):
            raise UsageError(
                f"unknown='replace' needs replacement= to be one character of the vocabulary, not {self.replacement!r}"
            )

    def __repr__(self) -> str:
        policy = f", unknown={self.unknown!r}" if self.unknown != "error" else ""
        if self.replacement is not None:
            policy += f", replacement={self.replacement!r}"
        if self.special_ids:
            policy += ", end_token=True"
        return f"CharTokenizer({self.characters!r}{policy})"

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + len(self.special_ids)

    def with_tokens(self, tokens: Sequence[str]) -> CharTokenizer:
        if self.special_ids:
            raise UsageError("a vocabulary of characters whose last id is an end token can't be added to")
        for token in tokens:
            if len(token) != 1:
                raise UsageError(
                    f"the tokens of this vocabulary are single characters, so {token!r} can't be added to it: give one "
                    "character, or start from a model with BPE"
                )
            if token in self.characters or tokens.count(token) > 1:
                raise UsageError(f"the character {token!r} is in the vocabulary already: don't add it")
        return CharTokenizer(self.characters + "".join(tokens), self.unknown, self.replacement)

    def encode(self, text: str) -> np.ndarray:
        """Return int64, shape (T,); T is `len(text)`, or less if unknown="skip" drops characters.

        Raises UnknownCharacterError (a RangeError) if unknown="error".
        """
        codes = _code_points(text)  # (T,)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)].astype(np.int64)  # (T,)
        if ids.size == 0 or ids.min() >= 0:
            return ids
        if self.unknown == "skip":
            return ids[ids >= 0]
        if self.replacement is not None:
            ids[ids < 0] = self.characters.index(self.replacement)
            return ids
        position = int((ids < 0).argmax())
        raise UnknownCharacterError(text[position], position, self.vocab_size)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        ids = check_ids(self._without_special(ids, skip_special_tokens), self.vocab_size)
        return bytes_around(ids, self.eos_token_id, self._in_utf32, "utf-32-le").decode("utf-32-le")

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return self.decode(ids).encode("utf-8")

    def _in_utf32(self, ids: np.ndarray) -> bytes:
        """The characters with these ids (T,)."""
        return self._codes[ids].astype("<u4").tobytes()

    def config(self) -> dict[str, Any]:
        found = {"characters": self.characters, "unknown": self.unknown, "replacement": self.replacement}
        return found | ({"end_token": True} if self.special_ids else {})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(config["characters"], config["unknown"], config["replacement"], bool(config.get("end_token")))


def _code_points(text: str) -> np.ndarray:
    """The code point of each character: uint32, shape (T,)."""
    return np.frombuffer(text_bytes(text, "utf-32-le"), dtype="<u4")
