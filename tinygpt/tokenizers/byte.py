"""A byte-level tokenizer: 256 ids, and no text has unknown tokens. With an end token, there is one more id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from .base import Tokenizer, bytes_around, check_ids, text_bytes


class ByteTokenizer(Tokenizer):
    """The ids are the UTF-8 bytes of the text. `decode(encode(text)) == text` for every text.

    end_token: id 256 ends a document. No text encodes to it.
    """

    type = "byte"

    def __init__(self, end_token: bool = False) -> None:
        if end_token:
            self.eos_token_id, self.special_ids = 256, frozenset({256})

    def __repr__(self) -> str:
        return f"ByteTokenizer({'end_token=True' if self.special_ids else ''})"

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.special_ids)

    def encode(self, text: str) -> np.ndarray:
        """Return int64, shape (T,), where T is the number of UTF-8 bytes."""
        return np.frombuffer(text_bytes(text, "utf-8"), dtype=np.uint8).astype(np.int64)

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        ids = check_ids(ids, self.vocab_size)
        return bytes_around(ids, self.eos_token_id, lambda run: run.astype(np.uint8).tobytes())

    def config(self) -> dict[str, Any]:
        return {"end_token": True} if self.special_ids else {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(bool(config.get("end_token")))
