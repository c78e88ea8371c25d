"""Estimates the size of a token file before anything is encoded, so that a full disk is reported at the start."""

from __future__ import annotations

import os

from ...data import CharacterVocabulary
from ...data.opening import STDIN, opened, suffix
from ...data.rows import SUFFIXES as TABLES
from ...data.tokens import token_dtype
from ...errors import UsageError
from ...tokenizers import Tokenizer
from .corpus import RunCorpus

# Minimum bytes of the token file per byte of text, where a sample says nothing: tables have other columns too, and a
# tokenizer that is yet to be trained can't encode one.
_AT_LEAST = {"byte": 2.0, "character": 2.0 / 3, "word": 0.6, "bpe": 0.5}
_SAMPLE = 1 << 15  # bytes from the middle of a file
_SURE = 0.8  # the rest of the text may need fewer tokens


def bytes_per_byte(corpus: RunCorpus, kind: str, tokenizer: Tokenizer | CharacterVocabulary | None) -> float:
    """Bytes of the token file per byte of text. tokenizer: None if one of this kind has yet to be trained."""
    known = _AT_LEAST.get(kind, _AT_LEAST["bpe"])
    path = corpus.files[0]
    if tokenizer is None or kind == "byte" or path == STDIN or not os.path.isfile(path) or suffix(path) in TABLES:
        return known
    try:
        with opened(path) as file:
            if os.path.splitext(path)[1].lower() == suffix(path):  # not compressed
                file.seek(os.path.getsize(path) // 8 * 4)  # between characters of UTF-16 and UTF-32
            sample = file.read(_SAMPLE)
        text = sample.decode(corpus.options.encoding, errors="ignore")
        if isinstance(tokenizer, CharacterVocabulary):
            return len(text) * token_dtype(1).itemsize / max(1, len(sample))
        ids = tokenizer.encode(text)
    except (OSError, UsageError):  # faults of the text are reported when it is read
        return known
    return _SURE * len(ids) * token_dtype(tokenizer.vocab_size).itemsize / max(1, len(sample))
