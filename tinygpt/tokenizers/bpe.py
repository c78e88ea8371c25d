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
from ..errors import CheckpointError, DtypeError, UsageError, missing_extra
from .base import FILE_NAME, Tokenizer, check_ids, text_bytes
from .bpe_files import (
    BYTE_LEVEL,
    END_OF_TEXT,
    NAMES,
    added_token,
    byte_of_character,
    bytes_of_token,
    check,
    check_added,
    describe,
    is_gpt2_scheme,
    read_files,
    read_folder,
    read_json,
    write_folder,
)
from .pieces import chunks, recut

_CHUNK = 1 << 14  # characters; a longer text is encoded in chunks of this size by several threads


class BPETokenizer(Tokenizer):
    """A byte-level BPE tokenizer. `BPETokenizer.load`, `from_files` and `train` make one.

    description: the content of a tokenizer.json; settings: that of a tokenizer_config.json.
    Raises CheckpointError where they make no byte-level BPE tokenizer, MissingExtraError without the library.
    """

    type = "bpe"

    def __init__(self, description: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self._build(description, settings or {}, "the description")

    def _build(self, description: dict[str, Any], settings: dict[str, Any], source: str) -> None:
        """Everything that `encode` and `decode` need. source: where it came from, for the sentences."""
        _tokenizers()  # without the library, that is what to say
        try:
            ids = check(description)
            special = {name: _special_name(name, settings, ids) for name in NAMES}
            self._library = _from_description(description, sorted(set(filter(None, special.values()))))
            if self._library.get_vocab(with_added_tokens=True) != ids:
                raise ValueError("the ids of its added_tokens are not kept")
            self._description = json.loads(self._library.to_str())
            check_added(self._description)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{source} makes no byte-level BPE tokenizer: {error}") from error
        self._any_border = is_gpt2_scheme(self._description)
        # What transformers would otherwise guess: its class for GPT-2 adds the end-of-text mark if none is named.
        tokenizer_class = "GPT2Tokenizer" if self._any_border else "PreTrainedTokenizerFast"
        self._settings = {"tokenizer_class": tokenizer_class} | special | settings
        self._with_special: Any = None  # a second one that finds special tokens in a text; made when asked for
        added = {entry["id"]: entry for entry in self._description["added_tokens"]}
        self._bytes = [
            token.encode("utf-8") if number in added else bytes_of_token(token)
            for token, number in sorted(ids.items(), key=lambda item: item[1])
        ]
        self.special_ids = frozenset(number for number, entry in added.items() if entry["special"])
        marks = {name: None if token is None else ids[token] for name, token in special.items()}
        self.bos_token_id, self.eos_token_id = marks["bos_token"], marks["eos_token"]
        self.pad_token_id = marks["pad_token"]

    def __repr__(self) -> str:
        return f"<BPETokenizer of {self.vocab_size} tokens>"

    # Making one -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """From a folder with GPT-2's files, tokenizer.json or vocab.json and merges.txt, or from a tokenizer.json."""
        path = Path(folder)
        description, settings = read_folder(path) if not path.is_file() else (read_json(path), {})
        tokenizer = cls.__new__(cls)
        tokenizer._build(description, settings, f"the tokenizer in {path}")
        return tokenizer

    @classmethod
    def from_files(cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str]) -> Self:
        """From a vocab.json and a merges.txt wherever they are."""
        tokenizer = cls.__new__(cls)
        tokenizer._build(read_files(Path(vocab), Path(merges)), {}, f"the tokenizer in {vocab}")
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
        vocab_size, special_tokens = _check_training(vocab_size, special_tokens)
        pairs = whole_number("BPETokenizer.train", "min_frequency", min_frequency)
        model = _train(_checked(texts), vocab_size - len(special_tokens), pairs)
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

    def encode(self, text: str, allow_special: bool = False) -> np.ndarray:
        """int64, shape (T,). allow_special: `<|endoftext|>` and its like in `text` become their one id."""
        text_bytes(text, "utf-8")  # or a sentence
        library = self._finding_special() if allow_special else self._library
        if len(text) < 2 * _CHUNK or not self._any_border:
            return np.array(library.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        encodings = library.encode_batch_fast(chunks(text, _CHUNK), add_special_tokens=False)
        return np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encodings])

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
            self._with_special.encode_special_tokens = False
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


def _special_name(name: str, settings: dict[str, Any], ids: dict[str, int]) -> str | None:
    """Which token is the eos_token (or another of NAMES). Where the settings are silent it is GPT-2's."""
    default = END_OF_TEXT if name != "pad_token" and END_OF_TEXT in ids else None
    token = settings.get(name, default)
    token = token.get("content") if isinstance(token, dict) else token  # older files keep its flags with it
    if token is not None and not isinstance(token, str):
        raise ValueError(f"the {name} is {token!r}, not a text")
    if token is not None and token not in ids:
        raise ValueError(f"the {name} {token!r} is not in the vocabulary")
    return token


def _from_description(description: dict[str, Any], special: list[str]) -> Any:
    """The library's tokenizer: deterministic, without padding, special tokens encoded as the characters they are.

    Raises ValueError with the library's words.
    """
    tokenizers = _tokenizers()
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(error) from error
    library.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    library.no_truncation()
    library.no_padding()
    library.model.dropout = None
    library.encode_special_tokens = True
    return library


def _check_training(vocab_size: Any, special_tokens: Any) -> tuple[int, tuple[str, ...]]:
    if isinstance(special_tokens, str):
        raise DtypeError(f"BPETokenizer.train: special_tokens is a list of texts, not the text {special_tokens!r}")
    special = tuple(special_tokens)
    for token in special:
        if not text_bytes(token, "utf-8") or special.count(token) > 1:
            raise UsageError(f"BPETokenizer.train: special tokens must be distinct and not empty, not {special!r}")
    least = 256 + len(special)
    return whole_number("BPETokenizer.train", "vocab_size", vocab_size, at_least=least), special


def _checked(texts: str | Iterable[str]) -> Iterator[str]:
    empty = True
    for text in [texts] if isinstance(texts, str) else texts:
        empty = not text_bytes(text, "utf-8") and empty
        yield text
    if empty:
        raise UsageError("BPETokenizer.train: the text is empty: there is nothing to learn merges from")


def _train(texts: Iterator[str], vocab_size: int, min_frequency: int) -> dict[str, Any]:
    """The model of a tokenizer.json: vocabulary and merges without special tokens, byte 0 with id 0."""
    tokenizers = _tokenizers()
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=BYTE_LEVEL["add_prefix_space"])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, initial_alphabet=list(byte_of_character()),
        show_progress=False,
    )  # fmt: skip
    library.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(library.to_str())["model"]
    return model


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("tokenizers", "bpe", "byte-level BPE") from error
    return tokenizers
