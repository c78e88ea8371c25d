"""Byte-level BPE, GPT-2's tokenizer, using the library `tokenizers` (the extra `bpe`).

    tokenizer = BPETokenizer.train(text, vocab_size=4096)       # or BPETokenizer.load(folder with GPT-2's files)
    ids = tokenizer.encode("To be, or not to be")               # int64, shape (T,)
    tokenizer.save(folder)                                      # transformers.AutoTokenizer reads it

GPT-2's regular expression splits the text into words. Each word starts as its UTF-8 bytes; the merges, each of which
replaces two adjacent tokens by one, are then applied in the order in which training found them. Since every byte is a
token, every text can be encoded, and decoding restores it exactly.

Special tokens, such as `<|endoftext|>` between documents, represent no text. Where a text contains those characters,
`encode` treats them as ordinary characters, so that untrusted text can't end a document. transformers does not do this;
`encode(text, allow_special=True)` does what transformers does.

Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016, section 3.2;
Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..checks import whole_number
from ..errors import CheckpointError, UsageError
from .added_tokens import Folder
from .as_transformers import END_OF_TEXT, GENERAL, GPT2, assemble
from .base import FILE_NAME, Tokenizer, check_ids, text_bytes
from .bpe_checks import check, check_added, is_gpt2_scheme
from .bpe_files import NAMES, added_token, describe, read_files, read_folder, read_json, write_folder
from .bpe_training import check_training, checked, train
from .byte_characters import bytes_of_token
from .hf_tokenizers import explain, tokenizers
from .pieces import chunks, recut
from .word_cache import WordCache

_CHUNK = 1 << 14  # characters; longer texts are encoded in chunks of this size by several threads


class BPETokenizer(Tokenizer):
    """A byte-level BPE tokenizer, usually made by `BPETokenizer.load`, `from_files` or `train`.

    description: the content of a tokenizer.json; settings: that of a tokenizer_config.json.
    Raises CheckpointError if they don't describe a byte-level BPE tokenizer, MissingExtraError without the library.
    """

    type = "bpe"
    knows_special = True

    def __init__(self, description: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self._build(Folder(description, settings or {}), "the description")

    def _build(self, folder: Folder, source: str) -> None:
        """Set up everything that `encode` and `decode` need. source: where it came from, for error messages."""
        tokenizers()  # if the library is missing, say that first
        try:
            check(folder.description)
            with explain("", ValueError):
                made = assemble(folder)
                self._description = json.loads(made.tokenizer.to_str())
            ids = check(self._description)
            check_added(self._description)
            self._settings = with_tokenizer_class(self._description, made.settings)
            self._library = made.tokenizer
            self._library.encode_special_tokens = True
            self._begin, self._end = _template_ids(self._library, len(ids))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{source} is not a valid byte-level BPE tokenizer: {error}") from error
        self._splittable = is_gpt2_scheme(self._description)
        all_special = all(entry["special"] for entry in self._description["added_tokens"])
        self._words = WordCache(self._library, self._description["model"]) if self._splittable and all_special else None
        self._with_special: Any = None  # a copy that recognizes special tokens in the text; made on first use
        added = {entry["id"]: entry for entry in self._description["added_tokens"]}
        self._bytes = [
            token.encode("utf-8") if token_id in added else bytes_of_token(token)
            for token, token_id in sorted(ids.items(), key=lambda item: item[1])
        ]
        self.special_ids = frozenset(token_id for token_id, entry in added.items() if entry["special"])
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            ids[made.special_tokens[name]] if name in made.special_tokens else None
            for name in ("bos_token", "eos_token", "pad_token")
        )

    def __repr__(self) -> str:
        return f"<BPETokenizer of {self.vocab_size} tokens>"

    # Construction ---------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Load a folder with tokenizer.json, or with vocab.json and merges.txt; or a tokenizer.json by its path."""
        path = Path(folder)
        tokenizer = cls.__new__(cls)
        tokenizer._build(
            read_folder(path) if not path.is_file() else Folder(read_json(path)), f"the tokenizer in {path}"
        )
        return tokenizer

    @classmethod
    def from_files(cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str]) -> Self:
        """Load from the paths of a vocab.json and a merges.txt."""
        tokenizer = cls.__new__(cls)
        tokenizer._build(Folder(read_files(Path(vocab), Path(merges)), complete=False), f"the tokenizer in {vocab}")
        return tokenizer

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        min_frequency: int = 2,
    ) -> Self:
        """Learn merges that encode texts like these in few tokens.

        texts: one text, or several, which are encoded independently. vocab_size: 256 bytes, plus the special tokens,
        plus merges; the result is smaller if no remaining pair occurs min_frequency times. The special tokens get
        the last ids, as in GPT-2; the first one serves as bos, eos and unk token.
        Training is deterministic. Raises UsageError.
        """
        vocab_size, special_tokens = check_training(vocab_size, special_tokens)
        pairs = whole_number("BPETokenizer.train", "min_frequency", min_frequency)
        model = train(checked(texts), vocab_size - len(special_tokens), pairs)
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        for token in special_tokens:
            if token in vocab:
                raise UsageError(
                    f"BPETokenizer.train: the special token {token!r} is also an ordinary token of these texts: "
                    f"choose a name such as '<|{token}|>'"
                )
            vocab[token] = len(vocab)
        description = describe(vocab, model["merges"])
        description["added_tokens"] = [added_token(token, vocab[token]) for token in special_tokens]
        first = special_tokens[0] if special_tokens else None
        names = {"bos_token": first, "eos_token": first, "unk_token": first}
        return cls(description, {"add_prefix_space": False, "errors": "replace"} | names)

    # Encoding and decoding ------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @property
    def start_ids(self) -> list[int]:
        """Ids that the tokenizer's files put before every text (add_bos_token, or a template)."""
        return list(self._begin)

    def encode(self, text: str, allow_special: bool = False, add_special_tokens: bool | None = None) -> np.ndarray:
        """Return int64, shape (T,). allow_special: encode as transformers does.

        That is, `<|endoftext|>` and other special tokens in `text` become one id each, and the tokens that the
        tokenizer's files put around a text (add_bos_token, or a template) are added. add_special_tokens, True or
        False, overrides the latter.
        """
        text_bytes(text, "utf-8")  # raises UsageError for a text that can't be encoded
        library = self._recognizing_special() if allow_special else self._library
        with explain("the tokenizer can't encode this text: "):
            if len(text) < 2 * _CHUNK or not self._splittable:
                encodings = [library.encode(text, add_special_tokens=False)]
            elif self._words is not None and not allow_special:
                return self._words.encode(text)
            else:
                encodings = library.encode_batch_fast(chunks(text, _CHUNK), add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if allow_special if add_special_tokens is None else add_special_tokens:
            ids = [np.array(self._begin, dtype=np.int64), *ids, np.array(self._end, dtype=np.int64)]
        return ids[0] if len(ids) == 1 else np.concatenate(ids)

    def batch_encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            text_bytes(text, "utf-8")
        if len(texts) == 0:
            return []
        with explain("the tokenizer can't encode these texts: "):
            if self._words is not None:
                return self._words.encode_batch(texts)
            encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def with_tokens(self, tokens: Sequence[str]) -> BPETokenizer:
        """Also recognize these texts as one token each, wherever they occur. They are not special tokens."""
        description = self._description | {"added_tokens": list(self._description["added_tokens"])}
        there = {entry["content"] for entry in description["added_tokens"]} | description["model"]["vocab"].keys()
        for token_id, token in enumerate(tokens, self.vocab_size):
            if not text_bytes(token, "utf-8") or token in there:
                problem = "is in the vocabulary already" if token else "is empty"
                raise UsageError(f"the token {token!r} can't be added, because it {problem}")
            there.add(token)
            description["added_tokens"].append(added_token(token, token_id) | {"special": False})
        return BPETokenizer(description, self._settings)

    def without_chat_template(self) -> Tokenizer:
        if self._settings.get("chat_template") is None:
            return self
        left = {name: value for name, value in self._settings.items() if name != "chat_template"}
        return BPETokenizer(self._description, left)

    def encode_special(self, text: str) -> np.ndarray:
        return self.encode(text, allow_special=True, add_special_tokens=False)

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        if self._splittable:
            return recut(pieces)
        return filter(None, ["".join(pieces)])  # we don't know where a text can be split under this scheme

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        table = self._bytes
        return b"".join([table[token_id] for token_id in check_ids(ids, self.vocab_size).tolist()])

    def _recognizing_special(self) -> Any:
        if self._with_special is None:
            self._with_special = type(self._library).from_str(self._library.to_str())
            self._with_special.encode_special_tokens = bool(self._settings.get("split_special_tokens"))
        return self._with_special

    # Saving ---------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return {"tokenizer": self._description, "settings": self._settings}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(config["tokenizer"], config["settings"])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write GPT-2's files, which transformers reads, into an existing folder; each file is written atomically.

        Removes a tokenizer of another class that was saved there. Raises UsageError.
        """
        write_folder(Path(folder), self._description, self._settings)
        (Path(folder) / FILE_NAME).unlink(missing_ok=True)


def with_tokenizer_class(description: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Add to `settings` the tokenizer_class with which transformers rebuilds this tokenizer from `description`."""
    pre_tokenizer, model = description["pre_tokenizer"], description["model"]
    altered = any(model.get(key) for key in ("unk_token", "ignore_merges", "byte_fallback", "fuse_unk"))
    plain = pre_tokenizer["type"] == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    if not plain or description["normalizer"] or altered:
        return settings | {"tokenizer_class": GENERAL}
    # Without an explicit None, that class defaults to <|endoftext|> for each of these tokens.
    names = {name: settings.get(name) for name in NAMES}
    return settings | names | {"tokenizer_class": GPT2, "add_prefix_space": bool(pre_tokenizer.get("add_prefix_space"))}


def _template_ids(library: Any, vocab_size: int) -> tuple[list[int], list[int]]:
    """The ids that the post-processor adds before and after a text."""
    with explain("its post_processor: ", ValueError):
        encoding = library.encode("a", add_special_tokens=True)
    ids, own = encoding.ids, [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
    begin, end = (ids[: own[0]], ids[own[-1] + 1 :]) if own else (ids, [])
    for token_id in [*begin, *end]:
        if token_id >= vocab_size:
            raise ValueError(f"its post_processor adds the id {token_id}, which no token has")
    return begin, end
