"""Text to token ids and back: bytes and characters.

tokenizer = CharTokenizer.from_text(text)      # or ByteTokenizer()
ids = tokenizer.encode("To be")                # int64, shape (T,)
tokenizer.decode(ids)                          # "To be"
tokenizer.save(folder)                         # folder/tokenizer.tinygpt.json
tokenizer = tinygpt.tokenizers.load(folder)    # the right class again
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError
from .base import FILE_NAME, StreamDecoder, Tokenizer, read_config
from .byte import ByteTokenizer
from .char import CharTokenizer, UnknownCharacterError

__all__ = [
    "FILE_NAME",
    "ByteTokenizer",
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "UnknownCharacterError",
    "load",
]

_CLASSES: dict[str, type[Tokenizer]] = {cls.type: cls for cls in (ByteTokenizer, CharTokenizer)}


def load(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer saved in `folder`, of whichever class; CheckpointError where it can't be read."""
    config = read_config(folder)
    cls = _CLASSES.get(config["type"])
    if cls is None:
        raise CheckpointError(
            f"{Path(folder) / FILE_NAME} holds a tokenizer of type {config['type']!r}; this version of tinygpt "
            f"knows {', '.join(sorted(_CLASSES))}"
        )
    return cls._from_file(config, folder)
