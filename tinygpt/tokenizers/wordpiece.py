"""BERT's tokenizer, as used by Chinese GPT-2 models: vocab.txt with WordPiece or with characters alone.

    tokenizer = tinygpt.tokenizers.load(folder)  # a folder with vocab.txt, or a tokenizer.json of that kind
    ids = tokenizer.encode("我爱北京")    # those of transformers' BertTokenizer, without [CLS] and [SEP]
    tokenizer.decode(ids)                # "我爱北京", without spaces between Chinese characters

A text is cleaned (control characters are removed, white space becomes spaces), each Chinese character and punctuation
mark becomes a word, accents and capitals are removed if the model is uncased, and the text is split at spaces. Each
word is split from the left into the longest pieces of the vocabulary; pieces that continue a word begin with "##". A
word for which this fails, or of more than 100 characters, is [UNK]. So decoding does not restore a text: white space,
accents, capitals and unknown words are lost. Decoded text is encoded to the same ids again, unless it contains [UNK];
where it has spaces around punctuation is a guess from the two adjacent tokens ("3.5" becomes "3. 5").

[CLS] and [SEP] are not added around a text, since a GPT would see them at the end of every prompt. [SEP] ends a text,
as in the models of uer, unless the model's config.json names another token; [CLS] begins one.

Source: Devlin et al., "BERT", 2019, and its tokenization.py; Wu et al., "Google's Neural Machine Translation System",
2016, section 4.1, for word pieces.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import UsageError
from .base import FILE_NAME, Tokenizer, check_ids, text_bytes
from .pieces import BOUNDARY, recut
from .wordpiece_files import Vocabulary, read_folder, write_folder
from .wordpiece_text import NO_SPACE_AFTER, NO_SPACE_BEFORE, Cleaner, is_chinese

_LONGEST_WORD = 100  # characters
_MOST_CACHED = 1 << 17  # words whose pieces are remembered
_CONTINUES = "##"


class WordPieceTokenizer(Tokenizer):
    """See the module. Usually made by `tinygpt.tokenizers.load`."""

    type = "wordpiece"
    knows_special = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        tokens = vocabulary.tokens
        self._ids = {token: number for number, token in enumerate(tokens)}
        special = {name: self._ids[token] for name, token in vocabulary.special.items()}
        self._unknown = special["unk_token"]
        self.special_ids = frozenset(special.values()) | {self._ids[token] for token in vocabulary.extra}
        self._whole = self.special_ids | {self._ids[token] for token in vocabulary.added}
        self.bos_token_id = special.get("bos_token", special.get("cls_token"))
        self.eos_token_id = special.get("eos_token", special.get("sep_token"))
        self.pad_token_id = special.get("pad_token")
        self._cleaner = Cleaner(vocabulary.lowercase, vocabulary.removes_accents, vocabulary.chinese)
        self._cache: dict[str, list[int]] = {}
        self._added = _one_of(vocabulary.added)
        self._added_or_special = _one_of([tokens[number] for number in self._whole])
        self._splittable = not any(BOUNDARY.search(f"x{token}") for token in vocabulary.added)
        self._spacing = [self._spaces(number, token) for number, token in enumerate(tokens)]
        self._bytes = [self._shown(number, token).encode("utf-8") for number, token in enumerate(tokens)]

    def __repr__(self) -> str:
        return f"<WordPieceTokenizer of {self.vocab_size} tokens>"

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    # Encoding -----------------------------------------------------------------------------------------

    def encode(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Return int64, shape (T,). allow_special: [SEP] and other special tokens in `text` become one id each."""
        text_bytes(text, "utf-8")  # raises UsageError for a text that can't be encoded
        ids: list[int] = []
        for number, part in enumerate((self._added_or_special if allow_special else self._added).split(text)):
            if number % 2:  # what the expression matched
                ids.append(self._ids[part])
                continue
            for word in self._cleaner(part).split():
                ids += self._cache.get(word) or self._pieces(word)
        return np.array(ids, dtype=np.int64)

    def encode_special(self, text: str) -> np.ndarray:
        return self.encode(text, allow_special=True)

    def _pieces(self, word: str) -> list[int]:
        """The longest pieces of a word, from the left."""
        found: list[int] = []
        begin = 0 if len(word) <= _LONGEST_WORD else len(word)
        while begin < len(word):
            prefix = _CONTINUES if begin else ""
            for end in range(len(word), begin, -1):
                number = self._ids.get(prefix + word[begin:end])
                if number is not None:
                    found.append(number)
                    begin = end
                    break
            else:
                found = []
                break
        found = found or [self._unknown]
        if len(self._cache) >= _MOST_CACHED:
            self._cache.clear()
        self._cache[word] = found
        return found

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        return recut(pieces) if self._splittable else filter(None, ["".join(pieces)])

    def with_tokens(self, tokens: Sequence[str]) -> WordPieceTokenizer:
        """Also recognize these texts as one token each, wherever they occur. They are not special tokens."""
        there = set(self.vocabulary.tokens)
        for token in tokens:
            if not text_bytes(token, "utf-8") or token in there or "\n" in token:
                problem = "is in the vocabulary already" if token in there else "is empty or has a line break"
                raise UsageError(f"the token {token!r} can't be added, because it {problem}")
            there.add(token)
        old = self.vocabulary
        return WordPieceTokenizer(replace(old, tokens=[*old.tokens, *tokens], added=[*old.added, *tokens]))

    # Decoding -----------------------------------------------------------------------------------------

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return self.bytes_after(None, ids)

    def bytes_after(self, before: int | None, ids: Sequence[int] | np.ndarray) -> bytes:
        """As `token_bytes`, with a space before the first token if it and the id `before` are words that need one."""
        found = []
        for number in check_ids(ids, self.vocab_size).tolist():
            if before is not None and self._spacing[before][1] and self._spacing[number][0]:
                found.append(b" ")
            found.append(self._bytes[number])
            before = number
        return b"".join(found)

    def _shown(self, number: int, token: str) -> str:
        continues = token.startswith(_CONTINUES) and len(token) > len(_CONTINUES) and number not in self._whole
        return token[len(_CONTINUES) :] if continues else token

    def _spaces(self, number: int, token: str) -> tuple[bool, bool]:
        """Whether a space may precede, and follow, this token. It is written where both neighbours allow it."""
        if number in self._whole and number != self._unknown:
            return False, False
        shown = self._shown(number, token)
        if not shown:
            return False, False
        before, after = shown[0] not in NO_SPACE_BEFORE, shown[-1] not in NO_SPACE_AFTER
        if self.vocabulary.chinese:  # otherwise a space between two Chinese words is one of the text
            before, after = before and not is_chinese(shown[0]), after and not is_chinese(shown[-1])
        return before and shown == token, after

    # Saving -------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return asdict(self.vocabulary)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(Vocabulary(**config))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Load a folder with vocab.txt, or with a tokenizer.json of this kind. Raises CheckpointError."""
        return cls(read_folder(Path(folder)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.txt and the two files with its settings, which transformers reads. Raises UsageError."""
        write_folder(Path(folder), self.vocabulary)
        (Path(folder) / FILE_NAME).unlink(missing_ok=True)


def _one_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches each of these texts, the longest first; its only group is the match, for `split`."""
    names = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else "((?!))")
