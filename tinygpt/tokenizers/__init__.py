"""Text to token ids and back: bytes, characters, words, GPT-2's byte-level BPE, BERT's WordPiece.

tokenizer = CharTokenizer.from_text(text)      # or ByteTokenizer(), or BPETokenizer.train(text, vocab_size=4096)
ids = tokenizer.encode("To be")                # int64, shape (T,)
tokenizer.decode(ids)                          # "To be"
tokenizer.save(folder)                         # folder/tokenizer.tinygpt.json; for BPE and BERT, Hugging Face's files
tokenizer = tinygpt.tokenizers.load(folder)    # picks the right class; or a name, such as "gpt2"
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError
from ..exchange import read_whole
from ..files import user_path
from ..seams import implementation
from . import bpe_files, hf_tokenizers, wordpiece_files
from .base import FILE_NAME, StreamDecoder, Tokenizer, read_config
from .bpe import BPETokenizer
from .bpe_files import TOKENIZER, VOCAB
from .byte import ByteTokenizer
from .char import CharTokenizer, UnknownCharacterError
from .word import WordTokenizer
from .wordpiece import WordPieceTokenizer
from .wordpiece_files import VOCAB as WORDPIECE_VOCAB
from .wordpiece_files import is_wordpiece

__all__ = [
    "FILES",
    "FILE_NAME",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "UnknownCharacterError",
    "WordPieceTokenizer",
    "WordTokenizer",
    "load",
]

FILES = frozenset({FILE_NAME, *bpe_files.FILES, *wordpiece_files.FILES})  # what any of them may save in a folder
_CLASSES: dict[str, type[Tokenizer]] = {cls.type: cls for cls in (ByteTokenizer, CharTokenizer, WordTokenizer)}


def load(folder_or_name: str | os.PathLike[str], revision: str = "main") -> Tokenizer:
    """Load the tokenizer saved in a folder, whatever its class. Raises CheckpointError if it can't be read.

    A string that is not the path of a folder is the name of a model, such as "gpt2": see `GPT.from_pretrained`, which
    also explains `revision`. Of a model that must be downloaded, only the small files are. In the folder, it looks for
    tokenizer.tinygpt.json first, then for the files of GPT-2 or BERT: tokenizer.json, or vocab.json and merges.txt, or
    vocab.txt.
    """
    if isinstance(folder_or_name, str) and not user_path(folder_or_name).exists():
        named: Tokenizer = implementation("tokenizer_named")(folder_or_name, revision)
        return named
    return read_whole(Path(folder_or_name), _load)


Tokenizer.from_pretrained = staticmethod(load)  # transformers' name


def require_library(folder: str | os.PathLike[str]) -> None:
    """Raise MissingExtraError where the tokenizer in `folder` needs a library that is not installed."""
    path = Path(folder)
    bpe = not (path / FILE_NAME).exists() and any((path / name).exists() for name in (TOKENIZER, VOCAB))
    if bpe and not is_wordpiece(path):
        hf_tokenizers.tokenizers()


def _load(path: Path) -> Tokenizer:
    if not (path / FILE_NAME).exists():
        names = (TOKENIZER, VOCAB, WORDPIECE_VOCAB)
        if not any((path / name).exists() for name in names):
            others = ", ".join([FILE_NAME, *names[:-1]])
            raise CheckpointError(f"cannot read the tokenizer in {path}: found none of {others} and {names[-1]}")
        return WordPieceTokenizer.load(path) if is_wordpiece(path) else BPETokenizer.load(path)
    config = read_config(path)
    cls = _CLASSES.get(config["type"])
    if cls is None:
        raise CheckpointError(
            f"{path / FILE_NAME} holds a tokenizer of type {config['type']!r}; this version of tinygpt "
            f"knows {', '.join(sorted(_CLASSES))}"
        )
    return cls._from_file(config, path)
