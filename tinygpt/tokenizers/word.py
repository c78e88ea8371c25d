"""A word-level tokenizer: the most frequent words of the training text, and one token for all others.

    tokenizer = WordTokenizer.train(text, vocab_size=8192)
    ids = tokenizer.encode("To be, or not to be")        # To be , or not to be: seven tokens

A text is split into words, punctuation marks and white-space characters; each Chinese or Japanese character is a word,
since these scripts have no spaces. A space between two words, or after a comma, is expected and takes no token. A space
elsewhere is a token, and a special joining token marks where an expected space is missing. So a text whose words are
all known is restored exactly. An unknown word is lost: it becomes `<unk>`; `unknown_count` counts these tokens.

Words that occur only once in the training text stay out of the vocabulary (min_frequency): otherwise `<unk>` would
never occur in training, and the model would not learn its context.
"""

from __future__ import annotations

import collections
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from ..checks import whole_number
from ..errors import UsageError
from .base import Tokenizer, check_ids, text_bytes
from .pieces import recut
from .wordpiece_text import NO_SPACE_AFTER, NO_SPACE_BEFORE

UNKNOWN = "<unk>"
SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and ideographs
_PIECE = re.compile(rf"[{SINGLE}]|[^\W{SINGLE}]+(?:['\u2019][^\W{SINGLE}]+)*|[^\w\s]|\s")
_ALONE = re.compile(f"[{SINGLE}\\s]")
# Where a text can be split: the first token after it is never preceded by an expected space.
_BOUNDARY = re.compile(r"(?<=\S)[\t-\r]")


class WordTokenizer(Tokenizer):
    """Token 0 is `<unk>`, 1 the space, 2 joins, and the id of `words[i]` is 3 + i. Usually made by `train`.

    end_token: the id after the last word ends a document. No text encodes to it.
    """

    type = "word"
    unknown_id, space_id, joining_id = 0, 1, 2

    def __init__(self, words: Iterable[str], end_token: bool = False) -> None:
        self.words = list(words)
        tokens = [UNKNOWN, " ", "", *self.words]
        self._ids = {word: number for number, word in enumerate(tokens)}
        self._bytes = [text_bytes(token, "utf-8") for token in tokens]
        if len(self._ids) != len(tokens):
            raise UsageError("a WordTokenizer needs distinct words, none of them empty, a space or <unk>")
        if end_token:
            self.eos_token_id, self.special_ids = len(tokens), frozenset({len(tokens)})
            tokens.append("")
            self._bytes.append(b"")
        # Whether each token expects a space before and after it. Between two tokens one is expected if both do.
        self._before = [bool(token) and not _ALONE.match(token) and token[0] not in NO_SPACE_BEFORE for token in tokens]
        self._after = [bool(token) and not _ALONE.match(token) and token[-1] not in NO_SPACE_AFTER for token in tokens]

    @classmethod
    def train(
        cls, texts: str | Iterable[str], vocab_size: int, min_frequency: int = 2, end_token: bool = False
    ) -> Self:
        """A tokenizer of at most `vocab_size` tokens that knows the most frequent words of these texts.

        Equally frequent words are taken in the order of their code points. Raises UsageError.
        """
        size = whole_number("WordTokenizer.train", "vocab_size", vocab_size)
        least = whole_number("WordTokenizer.train", "min_frequency", min_frequency)
        if size < 4 + end_token:
            raise UsageError(f"WordTokenizer.train: vocab_size must be at least {4 + end_token}, not {size}")
        counts: collections.Counter[str] = collections.Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            text_bytes(text, "utf-8")  # raises UsageError for a text that can't be encoded
            counts.update(_PIECE.findall(text))
        del counts[" "]
        frequent = ((-count, word) for word, count in counts.items() if count >= least)
        words = [word for _, word in heapq.nsmallest(size - 3 - end_token, frequent)]
        if not words:
            raise UsageError(
                f"WordTokenizer.train: the text has no word that occurs {least} times: use a longer text, or a smaller "
                "min_frequency"
            )
        return cls(words, end_token)

    def __repr__(self) -> str:
        return f"<WordTokenizer of {self.vocab_size} tokens>"

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> np.ndarray:
        """Return int64, shape (T,). An unknown word is `<unk>`."""
        text_bytes(text, "utf-8")
        known, before, after = self._ids, self._before, self._after
        ids: list[int] = []
        may_follow = space = False  # whether the token before expects a space, and whether one came
        for piece in _PIECE.findall(text):
            if piece == " ":
                if space:
                    ids.append(self.space_id)
                    may_follow = False
                space = True
                continue
            number = known.get(piece, self.unknown_id)
            if space != (may_follow and before[number]):
                ids.append(self.space_id if space else self.joining_id)
            ids.append(number)
            may_follow, space = after[number], False
        if space:
            ids.append(self.space_id)
        return np.array(ids, dtype=np.int64)

    def unknown_count(self, ids: Sequence[int] | np.ndarray) -> int:
        """How many of these ids, an array of any shape, are `<unk>`."""
        return int(np.count_nonzero(np.asarray(ids) == self.unknown_id))

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        return recut(pieces, _BOUNDARY)

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return self.bytes_after(None, ids)

    def bytes_after(self, before: int | None, ids: Sequence[int] | np.ndarray) -> bytes:
        """As `token_bytes`, after the space, if one is expected, between the token `before` and the first one."""
        found = []
        may_follow = before is not None and self._after[before]
        for number in check_ids(ids, self.vocab_size).tolist():
            if may_follow and self._before[number]:
                found.append(b" ")
            found.append(self._bytes[number])
            may_follow = self._after[number]
        return b"".join(found)

    def config(self) -> dict[str, Any]:
        return {"words": self.words} | ({"end_token": True} if self.special_ids else {})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(config["words"], bool(config.get("end_token")))
