"""A tokenizer as llama.cpp's byte-level BPE, which gives the same ids.

llama.cpp splits a text by GPT-2's regular expression, writes each byte as a character of GPT-2's table, and applies the
merges. BPE tokenizers that do the same are written as they are. Bytes are 256 tokens without a merge.

Characters are put together from the bytes of their UTF-8, from left to right: the euro sign, bytes e2 82 ac, by the
merges (e2, 82) and (e282, ac). The right half of such a merge is a byte that continues a character, and the left half
begins with one that starts a character. So no merge reaches across two characters, no split of the text falls inside
one, and a text of known characters has one token for each. llama.cpp silently drops unknown characters.

If a file names no end token, llama.cpp takes token 11 of a BPE vocabulary, and generation stops there. So there must be
one. If neither model nor tokenizer has one, it is the byte ff, which no UTF-8 contains. A vocabulary of characters
has no such byte; there `spare_end` asks for one more token, which the model must never predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from ..tokenizers.base import END_OF_TEXT
from ..tokenizers.byte_characters import byte_of_character

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # GGUF's kinds of tokens; special ones are CONTROL
_LETTERS = {byte: letter for letter, byte in byte_of_character().items()}  # GPT-2's table
_NO_BYTE = _LETTERS[0xFF]
_NO_MERGE = f"{_NO_BYTE} {_NO_BYTE}"  # llama.cpp refuses a file without merges; this one applies to no text


@dataclass
class Vocabulary:
    """What a GGUF file says about its tokens. tokens, kinds: by id."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str] = field(default_factory=lambda: [_NO_MERGE])
    bos: int | None = None
    eos: int = 0
    eot: int | None = None  # a second token that ends a text
    pad: int | None = None
    add_bos: bool = False
    spare_end: bool = False  # the last token is not one of the model's

    def add(self, token: str, kind: int) -> None:
        self.tokens.append(token)
        self.kinds.append(kind)


def vocabulary_of(tokenizer: Tokenizer, size: int, ends: Sequence[int] = ()) -> Vocabulary:
    """The vocabulary of a model with `size` ids whose texts end with one of the tokens `ends`, if any.

    Raises UsageError for a tokenizer that llama.cpp's BPE can't reproduce.
    """
    if isinstance(tokenizer, BPETokenizer):
        found = _of_bpe(tokenizer)
    elif isinstance(tokenizer, ByteTokenizer):
        found = Vocabulary([_LETTERS[byte] for byte in range(256)], [NORMAL] * 256)
    elif isinstance(tokenizer, CharTokenizer):
        found = _of_characters(tokenizer.characters)
    else:
        raise UsageError(
            f"save_gguf: a tokenizer of type {tokenizer.type} can't be expressed as byte-level BPE, the only kind that "
            "is written to a GGUF file: train the model with characters, bytes or BPE, or convert it to another format"
        )
    if tokenizer.ids_of_texts > size:
        raise UsageError(
            f"save_gguf: the tokenizer has {tokenizer.vocab_size} tokens, but the model has only {size}: they do not "
            "belong together"
        )
    if not isinstance(tokenizer, BPETokenizer) and tokenizer.eos_token_id is not None:
        found.add(END_OF_TEXT, CONTROL)
    del found.tokens[size:], found.kinds[size:]  # special tokens that the model has no rows for
    _name_special(found, tokenizer, size, ends)
    for token_id in range(len(found.tokens), size):
        found.add(f"[PAD{token_id}]", UNUSED)  # rows that no token has
    if found.spare_end:
        found.eos = size
        found.add(END_OF_TEXT, CONTROL)
    if len(set(found.tokens)) != len(found.tokens):
        raise UsageError("save_gguf: two of the tokenizer's tokens have the same text, which llama.cpp does not allow")
    return found


def _name_special(found: Vocabulary, tokenizer: Tokenizer, size: int, ends: Sequence[int]) -> None:
    """Say which tokens end, begin and pad a text."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends = [token_id for token_id in ends or own if token_id < size]
    if len(ends) > 2:
        raise UsageError(
            f"save_gguf: any of {len(ends)} tokens ends a text of this model (eos_token_id {ends}), but a GGUF file "
            "has room for two: leave the others out of generation_config.json"
        )
    if ends:
        found.eos, found.eot = ends[0], ends[1] if len(ends) > 1 else None
    elif isinstance(tokenizer, CharTokenizer):
        found.spare_end = True
    else:
        found.eos = found.tokens.index(_NO_BYTE)
    if found.bos is None and (bos := tokenizer.bos_token_id) is not None and bos < size:
        found.bos = bos
    if (pad := tokenizer.pad_token_id) is not None and pad < size:
        found.pad = pad


def _of_characters(characters: str) -> Vocabulary:
    written = ["".join(_LETTERS[byte] for byte in character.encode("utf-8")) for character in characters]
    merges = dict.fromkeys(f"{token[:end]} {token[end]}" for token in written for end in range(1, len(token)))
    return Vocabulary(written, [NORMAL] * len(written), list(merges) or [_NO_MERGE])


def _of_bpe(tokenizer: BPETokenizer) -> Vocabulary:
    description = tokenizer.config()["tokenizer"]
    added = {entry["content"]: entry for entry in description["added_tokens"] or []}
    difference = _difference(description, added)
    start = tokenizer.start_ids
    around = tokenizer.encode("", allow_special=True).tolist()
    if difference is None and (len(start) > 1 or around != start):
        difference = f"puts the tokens {around} around every text"
    if difference is not None:
        raise UsageError(f"save_gguf: the tokenizer {difference}, which llama.cpp's tokenizer of GPT-2 does not do")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in description["model"]["merges"]]
    ids = description["model"]["vocab"] | {token: entry["id"] for token, entry in added.items()}
    tokens = sorted(ids, key=lambda token: ids[token])
    kinds = [NORMAL if token not in added else _kind(added[token]) for token in tokens]
    found = Vocabulary(tokens, kinds, merges or [_NO_MERGE])
    if start:
        found.bos, found.add_bos = start[0], True
    return found


def _kind(entry: dict[str, Any]) -> int:
    """llama.cpp finds a USER_DEFINED token in every text, a CONTROL token only where it parses special tokens."""
    return CONTROL if entry["special"] else USER_DEFINED


def _difference(description: dict[str, Any], added: dict[str, Any]) -> str | None:
    """How this BPE tokenizer differs from GPT-2's, as the rest of a sentence; None if it does not."""
    model, split = description["model"], description["pre_tokenizer"]
    if split["type"] != "ByteLevel" or not split.get("use_regex", True):
        return "splits texts by its own rule"
    if split.get("add_prefix_space"):
        return "adds a space before every text"
    if description["normalizer"]:
        return "changes texts by a normalizer"
    if model.get("ignore_merges"):
        return "takes a word that is a token before it merges (ignore_merges)"
    for token, entry in added.items():
        if not entry["special"] and any(entry.get(flag) for flag in ("single_word", "lstrip", "rstrip")):
            return f"takes the spaces or letters around the token {token!r} into account"
    for token in model["vocab"]:
        if token not in added and not set(token) <= byte_of_character().keys():
            return f"has the token {token!r}, which stands for no bytes"
    return None
