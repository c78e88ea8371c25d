"""A byte-level tokenizer: 256 ids, and no text has unknown tokens."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from .base import Tokenizer, check_ids, text_bytes


class ByteTokenizer(Tokenizer):
    """The ids are the UTF-8 bytes of the text. `decode(encode(text)) == text` for every text."""

    type = "byte"

    def __repr__(self) -> str:
        return "ByteTokenizer()"

    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str) -> np.ndarray:
        """Return int64, shape (T,), where T is the number of UTF-8 bytes."""
        return np.frombuffer(text_bytes(text, "utf-8"), dtype=np.uint8).astype(np.int64)

    def token_bytes(self, ids: Any) -> bytes:
        return check_ids(ids, self.vocab_size).astype(np.uint8).tobytes()

    def config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls()
