"""Byte-level BPE, the tokenizer of GPT-2, through the library `tokenizers` (the extra `bpe`).

    tokenizer = BPETokenizer.train(text, vocab_size=4096)       # or BPETokenizer.load(folder of GPT-2's files)
    ids = tokenizer.encode("To be, or not to be")               # int64, shape (T,)
    tokenizer.save(folder)                                      # transformers.AutoTokenizer reads it

The text is cut into words by GPT-2's regular expression. A word starts as its UTF-8 bytes; then the merges are applied,
in the order in which training found them, each making one token of two neighbours. As every byte is a token, every
text has ids, and comes back from them exactly.

Special tokens, such as `<|endoftext|>` between two documents, stand for no text. Where a text merely contains these
characters, they are encoded as the characters they are: a text from elsewhere can't end a document. That differs from
transformers; `encode(text, allow_special=True)` does as it does.

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
from .as_transformers import END_OF_TEXT, GENERAL, GPT2, Folder, assemble
from .base import FILE_NAME, Tokenizer, check_ids, text_bytes
from .bpe_checks import check, check_added, is_gpt2_scheme
from .bpe_files import NAMES, added_token, describe, read_files, read_folder, read_json, write_folder
from .bpe_training import check_training, checked, train
from .byte_characters import bytes_of_token
from .hf_tokenizers import explain, tokenizers
from .pieces import chunks, recut

_CHUNK = 1 << 14  # characters; a longer text is encoded in chunks of this size by several threads


class BPETokenizer(Tokenizer):
    """A byte-level BPE tokenizer. `BPETokenizer.load`, `from_files` and `train` make one.

    description: the content of a tokenizer.json; settings: that of a tokenizer_config.json.
    Raises CheckpointError where they make no byte-level BPE tokenizer, MissingExtraError without the library.
    """

    type = "bpe"

    def __init__(self, description: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self._build(Folder(description, settings or {}), "the description")

    def _build(self, folder: Folder, source: str) -> None:
        """Everything that `encode` and `decode` need. source: where it came from, for the sentences."""
        tokenizers()  # without the library, that is what to say
        try:
            check(folder.description)
            with explain("", ValueError):
                made = assemble(folder)
                self._description = json.loads(made.tokenizer.to_str())
            ids = check(self._description)
            check_added(self._description)
            self._settings = settings_that_keep(self._description, made.settings)
            self._library = made.tokenizer
            self._library.encode_special_tokens = True
            self._begin, self._end = _around(self._library, len(ids))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{source} makes no byte-level BPE tokenizer: {error}") from error
        self._any_border = is_gpt2_scheme(self._description)
        self._with_special: Any = None  # a second one that finds special tokens in a text; made when asked for
        added = {entry["id"]: entry for entry in self._description["added_tokens"]}
        self._bytes = [
            token.encode("utf-8") if number in added else bytes_of_token(token)
            for token, number in sorted(ids.items(), key=lambda item: item[1])
        ]
        self.special_ids = frozenset(number for number, entry in added.items() if entry["special"])
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            ids[made.marks[name]] if name in made.marks else None for name in ("bos_token", "eos_token", "pad_token")
        )

    def __repr__(self) -> str:
        return f"<BPETokenizer of {self.vocab_size} tokens>"

    # Making one -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """From a folder with GPT-2's files, tokenizer.json or vocab.json and merges.txt, or from a tokenizer.json."""
        path = Path(folder)
        tokenizer = cls.__new__(cls)
        tokenizer._build(
            read_folder(path) if not path.is_file() else Folder(read_json(path)), f"the tokenizer in {path}"
        )
        return tokenizer

    @classmethod
    def from_files(cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str]) -> Self:
        """From a vocab.json and a merges.txt wherever they are."""
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
        """A tokenizer for texts like these: the merges that make them short.

        texts: one text, or any number of them, each for itself. vocab_size: 256 bytes, the special tokens and the
        rest merges; there are fewer where no pair is left that occurs min_frequency times. The special tokens get
        the last ids, as in GPT-2; the first of them is the mark of beginning and end (bos, eos).
        The same texts make the same tokenizer. Raises UsageError.
        """
        vocab_size, special_tokens = check_training(vocab_size, special_tokens)
        pairs = whole_number("BPETokenizer.train", "min_frequency", min_frequency)
        model = train(checked(texts), vocab_size - len(special_tokens), pairs)
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        for token in special_tokens:
            if token in vocab:
                raise UsageError(
                    f"BPETokenizer.train: the special token {token!r} is an ordinary token of these texts too: "
                    f"choose a mark such as '<|{token}|>'"
                )
            vocab[token] = len(vocab)
        description = describe(vocab, model["merges"])
        description["added_tokens"] = [added_token(token, vocab[token]) for token in special_tokens]
        mark = special_tokens[0] if special_tokens else None
        names = {"bos_token": mark, "eos_token": mark, "unk_token": mark}
        return cls(description, {"add_prefix_space": False, "errors": "replace"} | names)

    # Text and ids ---------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @property
    def start_ids(self) -> list[int]:
        """What its files put before every text (add_bos_token, a template)."""
        return list(self._begin)

    def encode(self, text: str, allow_special: bool = False, add_special_tokens: bool | None = None) -> np.ndarray:
        """int64, shape (T,). allow_special: as transformers encodes.

        Then `<|endoftext|>` and its like in `text` become their one id, and what the tokenizer's files put around a
        text (add_bos_token, a template) stands around it, unless add_special_tokens=False.
        """
        text_bytes(text, "utf-8")  # or a sentence
        library = self._finding_special() if allow_special else self._library
        with explain("the tokenizer can't encode this text: "):
            if len(text) < 2 * _CHUNK or not self._any_border:
                encodings = [library.encode(text, add_special_tokens=False)]
            else:
                encodings = library.encode_batch_fast(chunks(text, _CHUNK), add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if allow_special if add_special_tokens is None else add_special_tokens:
            ids = [np.array(self._begin, dtype=np.int64), *ids, np.array(self._end, dtype=np.int64)]
        return ids[0] if len(ids) == 1 else np.concatenate(ids)

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        if self._any_border:
            return recut(pieces)
        return filter(None, ["".join(pieces)])  # a scheme of which we don't know where it can be cut

    def token_bytes(self, ids: Any) -> bytes:
        table = self._bytes
        return b"".join([table[number] for number in check_ids(ids, self.vocab_size).tolist()])

    def _finding_special(self) -> Any:
        if self._with_special is None:
            self._with_special = type(self._library).from_str(self._library.to_str())
            self._with_special.encode_special_tokens = bool(self._settings.get("split_special_tokens"))
        return self._with_special

    # Keeping it -----------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return {"tokenizer": self._description, "settings": self._settings}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(config["tokenizer"], config["settings"])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write GPT-2's files, which transformers reads, into an existing folder; each whole or not at all.

        A tokenizer of another class that was saved there is taken away: a folder has one. Raises UsageError.
        """
        write_folder(Path(folder), self._description, self._settings)
        (Path(folder) / FILE_NAME).unlink(missing_ok=True)


def settings_that_keep(description: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the class under which transformers makes this tokenizer of this description again."""
    cutter, model = description["pre_tokenizer"], description["model"]
    altered = any(model.get(key) for key in ("unk_token", "ignore_merges", "byte_fallback", "fuse_unk"))
    if cutter["type"] != "ByteLevel" or not cutter.get("use_regex", True) or description["normalizer"] or altered:
        return settings | {"tokenizer_class": GENERAL}
    # That class would take <|endoftext|> for a mark that is not named at all.
    names = {name: settings.get(name) for name in NAMES}
    return settings | names | {"tokenizer_class": GPT2, "add_prefix_space": bool(cutter.get("add_prefix_space"))}


def _around(library: Any, vocab_size: int) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and after a text."""
    with explain("its post_processor: ", ValueError):
        encoding = library.encode("a", add_special_tokens=True)
    ids, own = encoding.ids, [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
    begin, end = (ids[: own[0]], ids[own[-1] + 1 :]) if own else (ids, [])
    for number in [*begin, *end]:
        if number >= vocab_size:
            raise ValueError(f"its post_processor adds the id {number}, which no token has")
    return begin, end
