"""What every tokenizer can do, how it is kept in a file, and how ids become text piece by piece.

A tokenizer is a two-way mapping between text and integer ids `0 .. vocab_size - 1`. A subclass gives
three things: `encode`, `token_bytes` (the UTF-8 bytes behind ids) and `config` (what must be saved to
make it again). Decoding rests on bytes, not on characters, because one character can be spread over
several tokens: that is what makes streaming exact (`StreamDecoder`).
"""

from __future__ import annotations

import codecs
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..errors import CheckpointError, DtypeError, RangeError, ShapeError, UsageError
from ..files import atomic_write

# Not "tokenizer.json": that name belongs to the Hugging Face format, and both may share a folder.
FILE_NAME = "tokenizer.tinygpt.json"


class Tokenizer(ABC):
    """Text to ids and back. Equal configurations make equal tokenizers."""

    type: ClassVar[str]  # the name of the class in the saved file
    special_ids: frozenset[int] = frozenset()  # marks such as end-of-text, which stand for no text
    bos_token_id: int | None = None  # the mark of a text's beginning, of its end, and what fills up short rows
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    @property
    def start_ids(self) -> list[int]:
        """What stands before every text that a model is to go on from, where the tokenizer's files say so."""
        return []

    @property
    def ids_of_texts(self) -> int:
        """How many ids a model must know: special tokens at the end, such as padding added later, may be beyond it."""
        size = self.vocab_size
        while size - 1 in self.special_ids:
            size -= 1
        return size

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`: int64, shape (T,)."""

    @abstractmethod
    def token_bytes(self, ids: Any) -> bytes:
        """The UTF-8 bytes that `ids` stand for; they may begin or end inside a character."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything that `from_config` needs, as JSON values."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The tokenizer that `config()` described."""

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same text, cut so that its pieces, encoded one by one, have the ids of the whole.

        Where tokens never reach over a cut, as with bytes and characters, these are the pieces that came.
        """
        return iter(pieces)

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of `ids` (integers, shape (T,)); skip_special_tokens: without the marks in `special_ids`.

        Bytes that are no UTF-8, which only a model can produce, become U+FFFD. Raises RangeError for an id
        outside the vocabulary, DtypeError for anything but integers, ShapeError for more than one axis.
        """
        return self.token_bytes(self._kept(ids, skip_special_tokens)).decode("utf-8", errors="replace")

    def batch_decode(self, batch: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """One text for each row of `batch` (integers, shape (B, T), or rows of different lengths)."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def _kept(self, ids: Any, skip_special_tokens: bool) -> Any:
        """`ids`, without special tokens if they are to be skipped."""
        if not skip_special_tokens or not self.special_ids:
            return ids
        ids = check_ids(ids, self.vocab_size)
        return ids[~np.isin(ids, list(self.special_ids))]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.tinygpt.json` into an existing folder, whole or not at all."""
        path = Path(folder) / FILE_NAME
        content = json.dumps({"type": self.type, **self.config()}, ensure_ascii=False, indent=1)
        try:
            with atomic_write(path, "wb") as file:
                file.write(content.encode("utf-8") + b"\n")
        except OSError as error:
            raise UsageError(f"cannot write the tokenizer to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """The tokenizer saved in `folder`; CheckpointError where the file is damaged or another type's."""
        config = read_config(folder)
        if config["type"] != cls.type:
            raise CheckpointError(
                f"{Path(folder) / FILE_NAME} holds a tokenizer of type {config['type']!r}, not {cls.type!r}: "
                "tinygpt.tokenizers.load picks the right class"
            )
        return cls._from_file(config, folder)

    @classmethod
    def _from_file(cls, config: dict[str, Any], folder: str | os.PathLike[str]) -> Self:
        try:
            return cls.from_config(config)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{Path(folder) / FILE_NAME} is not a valid {cls.type!r} tokenizer ({error}): save the tokenizer again"
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self.type == other.type and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((self.type, json.dumps(self.config(), sort_keys=True)))


class StreamDecoder:
    """Ids in, complete characters out: what a sampler prints while it is still sampling.

    decoder = StreamDecoder(tokenizer)
    for token in ids:
        print(decoder.feed(token), end="", flush=True)
    print(decoder.finish())

    A character whose bytes are not all there yet is held back. The pieces together are exactly what
    `tokenizer.decode` makes of all the ids, with or without the special tokens among them.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Any) -> str:
        """The characters that one id, or a row of ids, completes; often the empty string."""
        return self._utf8.decode(self._tokenizer.token_bytes(self._tokenizer._kept(np.atleast_1d(ids), self._skip)))

    def finish(self) -> str:
        """What an unfinished character at the end comes to: "" or U+FFFD. The decoder can then start anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The saved description of a tokenizer, checked as far as its "type"; CheckpointError if damaged."""
    path = Path(folder) / FILE_NAME
    try:
        config = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise CheckpointError(f"the tokenizer file {path} is damaged or cut short: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("type"), str):
        raise CheckpointError(f"the tokenizer file {path} names no tokenizer type: save the tokenizer again")
    return config


def check_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """`ids` as an integer array of shape (T,), every one of them in `0 .. vocab_size - 1`."""
    try:
        array = np.asarray(ids)
    except ValueError as error:  # rows of different lengths
        raise ShapeError("decode needs ids of shape (T,), not rows: use batch_decode for a batch") from error
    if array.size == 0:  # an empty list has dtype float64
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise DtypeError(f"decode needs integer ids, not {array.dtype}")
    if array.ndim != 1:
        raise ShapeError(f"decode needs ids of shape (T,), not {array.shape}: use batch_decode for a batch")
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        position = int(outside.argmax())
        raise RangeError(
            f"decode got the id {array[position]} at position {position}, but this tokenizer's ids go "
            f"from 0 to {vocab_size - 1}: is it the tokenizer that the model was trained with?"
        )
    return array


def text_bytes(text: str, encoding: str) -> bytes:
    """`text` in an encoding of Unicode. Refuses other types, and lone surrogates, which none can carry."""
    if not isinstance(text, str):
        raise DtypeError(f"a tokenizer needs text of type str, not {type(text).__name__}")
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise RangeError(
            f"the character at position {error.start} (U+{ord(text[error.start]):04X}) is half of a surrogate "
            "pair, which is no character: read the text with encoding='utf-8'"
        ) from error
