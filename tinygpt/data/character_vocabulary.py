"""A vocabulary of characters that is known only when the whole text has been read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..tokenizers import CharTokenizer
from ..tokenizers.base import text_bytes


class CharacterVocabulary:
    """Encodes characters with ids in order of occurrence; `tokenizer` then has them in code-point order."""

    def __init__(self, end_token: bool) -> None:
        self.end_token = end_token
        self._ids = np.full(0x110000, -1, np.int32)  # code point -> id as they come; the end token is 0 if there is one
        self._codes: list[int] = []

    @property
    def vocab_size(self) -> int:
        """So far."""
        return len(self._codes) + self.end_token

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, in order of occurrence: int32, shape (T,)."""
        codes = np.frombuffer(text_bytes(text, "utf-32-le"), "<u4")
        ids: np.ndarray = self._ids[codes]
        if ids.size and ids.min() < 0:
            new = np.unique(codes[ids < 0])
            self._ids[new] = self.vocab_size + np.arange(len(new))
            self._codes += new.tolist()
            ids = self._ids[codes]
        return ids

    def batch_encode(self, texts: Iterable[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer("".join(map(chr, sorted(self._codes))), end_token=self.end_token)

    def order(self) -> np.ndarray:
        """The tokenizer's id for each id that `encode` returned: (V,)."""
        codes = np.array(self._codes, np.int64)
        ranks = np.empty(len(codes), np.int64)
        ranks[np.argsort(codes)] = np.arange(len(codes))
        return np.concatenate([np.full(int(self.end_token), len(codes), np.int64), ranks])
