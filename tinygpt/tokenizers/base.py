"""The tokenizer interface, its file format, and streaming decoding.

A tokenizer maps text to integer ids `0 .. vocab_size - 1` and back. A subclass implements `encode`,
`token_bytes` (the UTF-8 bytes of some ids), and `config` with `from_config` (what is saved, and how to
rebuild the tokenizer from it). Decoding works on bytes rather than characters, because one character can
span several tokens; this makes streaming exact (`StreamDecoder`).
"""

from __future__ import annotations

import codecs
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..checks import integer_array
from ..errors import CheckpointError, DtypeError, RangeError, UsageError
from ..files import atomic_write
from .batch import Encoding, encode_batch, token_property

# Not "tokenizer.json": that name belongs to the Hugging Face format, and one folder may hold both.
FILE_NAME = "tokenizer.tinygpt.json"
END_OF_TEXT = "<|endoftext|>"  # how the end token is shown, as GPT-2's is


class Tokenizer(ABC):
    """Text to ids and back. Two tokenizers with equal configurations are equal."""

    type: ClassVar[str]  # identifies the class in the saved file
    knows_special: ClassVar[bool] = False  # whether `encode_special` differs from `encode`
    special_ids: frozenset[int] = frozenset()  # tokens such as end-of-text that represent no text
    bos_token_id: int | None = None  # beginning of text, end of text, padding
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    from_pretrained: ClassVar[Callable[..., Tokenizer]]  # `tinygpt.tokenizers.load`, which sets it
    padding_side: str = "right"  # or "left": where a call puts padding
    bos_token, eos_token, pad_token = map(
        token_property, ("bos_token_id", "eos_token_id", "pad_token_id")
    )  # their texts

    @property
    def start_ids(self) -> list[int]:
        """Ids to put before every prompt. Empty unless the tokenizer's files ask for them."""
        return []

    @property
    def ids_of_texts(self) -> int:
        """The smallest vocab_size a model needs; special tokens at the end, such as added padding, don't count."""
        size = self.vocab_size
        while size - 1 in self.special_ids:
            size -= 1
        return size

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of ids."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`: int64, shape (T,)."""

    def __len__(self) -> int:
        """`vocab_size`."""
        return self.vocab_size

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Encoding:
        """Encode one text or several, as transformers' tokenizers do: a dict of input_ids and attention_mask.

        padding: True or "longest", "max_length", False. truncation: True cuts the ends of longer texts off.
        max_length: in tokens. return_tensors: "np" for int64 arrays (B, T), also for a single text; None for lists.
        Padding has the id pad_token_id, on the side `padding_side`. Raises UsageError, DtypeError, ShapeError.
        """
        return encode_batch(self, texts, padding, truncation, max_length, return_tensors)

    def batch_encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, as `encode` gives them; for many short texts it may be much faster."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Return the UTF-8 bytes of `ids`, which may begin or end in the middle of a character."""

    def bytes_after(self, before: int | None, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that `ids` add to a text whose last token is `before`; None: to an empty text.

        In a tokenizer whose words are joined by spaces that are not tokens, a token's bytes depend on the token before
        it. By default they don't.
        """
        return self.token_bytes(ids)

    def encode_special(self, text: str) -> np.ndarray:
        """As `encode`, but special tokens written out in `text` become one id each: for trusted text only."""
        return self.encode(text)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return everything `from_config` needs, as JSON values."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild a tokenizer from what its `config()` returned."""

    def with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """A tokenizer that also has these tokens, with the next ids. Raises UsageError for one that it can't add."""
        raise UsageError(
            f"a tokenizer of type {self.type} has a fixed vocabulary, so {', '.join(map(repr, tokens))} can't be added"
        )

    def without_chat_template(self) -> Tokenizer:
        """The tokenizer without the chat template that its settings may hold for other programs."""
        return self

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        """Re-split the text so that encoding the pieces separately yields the same ids as encoding the whole text.

        Byte and character tokens never cross a split, so here the pieces are returned unchanged.
        """
        return iter(pieces)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids` (integers, shape (T,)); skip_special_tokens leaves out those in `special_ids`.

        Bytes that are not valid UTF-8, which a model may generate, become U+FFFD. Raises RangeError for an id
        outside the vocabulary, DtypeError for ids that are not integers, ShapeError for more than one axis.
        """
        return self.token_bytes(self._without_special(ids, skip_special_tokens)).decode("utf-8", errors="replace")

    def batch_decode(self, batch: Iterable[Sequence[int] | np.ndarray], skip_special_tokens: bool = False) -> list[str]:
        """Decode each row of `batch` (integers, shape (B, T), or rows of different lengths)."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def _without_special(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool) -> Any:
        """`ids`, without the special tokens if `skip_special_tokens`."""
        if not skip_special_tokens or not self.special_ids:
            return ids
        ids = check_ids(ids, self.vocab_size)
        return ids[~np.isin(ids, list(self.special_ids))]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.tinygpt.json` atomically into an existing folder. Raises UsageError if that fails."""
        path = Path(folder) / FILE_NAME
        content = json.dumps({"type": self.type, **self.config()}, ensure_ascii=False, indent=1)
        try:
            with atomic_write(path, "wb") as file:
                file.write(content.encode("utf-8") + b"\n")
        except OSError as error:
            raise UsageError(f"cannot write the tokenizer to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Load the tokenizer saved in `folder`. Raises CheckpointError if the file is damaged or of another type."""
        config = read_config(folder)
        if config["type"] != cls.type:
            raise CheckpointError(
                f"{Path(folder) / FILE_NAME} holds a tokenizer of type {config['type']!r}, not {cls.type!r}: "
                "load it with tinygpt.tokenizers.load, which picks the right class"
            )
        return cls._from_file(config, folder)

    save_pretrained = save  # transformers' name

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
    """Decode ids to text as they arrive, so that a sampler can print while it is still sampling.

    decoder = StreamDecoder(tokenizer)
    for token in ids:
        print(decoder.feed(token), end="", flush=True)
    print(decoder.finish())

    An incomplete character is held back until its remaining bytes arrive. The pieces, joined, equal
    `tokenizer.decode(all_ids, skip_special_tokens)`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._before: int | None = None  # the last token of the text so far

    def feed(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the characters completed by one id or by ids of shape (T,); often the empty string."""
        ids = self._tokenizer._without_special(np.atleast_1d(ids), self._skip)
        text = self._utf8.decode(self._tokenizer.bytes_after(self._before, ids))
        if len(ids):
            self._before = int(ids[-1])
        return text

    def finish(self) -> str:
        """Return U+FFFD if the text ends in an incomplete character, else "". Resets the decoder for another text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._before = None
        return rest


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a saved configuration; of its keys, only "type" is checked. Raises CheckpointError if it is damaged."""
    path = Path(folder) / FILE_NAME
    try:
        config = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise CheckpointError(f"the tokenizer file {path} is damaged or cut short: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("type"), str):
        raise CheckpointError(f"the tokenizer file {path} has no tokenizer type: save the tokenizer again")
    return config


def check_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Return `ids` as an integer array of shape (T,) with values in `0 .. vocab_size - 1`, or raise UsageError."""
    array = integer_array("decode: ids", ids, flat=True, to_do=": use batch_decode for a batch")
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        position = int(outside.argmax())
        raise RangeError(
            f"decode got the id {array[position]} at position {position}, but this tokenizer's ids go "
            f"from 0 to {vocab_size - 1}: check that the model was trained with this tokenizer"
        )
    return array


def bytes_around(
    ids: np.ndarray, end_id: int | None, inside: Callable[[np.ndarray], bytes], encoding: str = "utf-8"
) -> bytes:
    """The bytes of `ids` (T,): `inside` gives those of each run of ids between two `end_id`."""
    ends = np.flatnonzero(ids == end_id) if end_id is not None else ()
    if len(ends) == 0:
        return inside(ids)
    runs = np.split(ids, ends)
    return END_OF_TEXT.encode(encoding).join([inside(runs[0]), *(inside(run[1:]) for run in runs[1:])])


def text_bytes(text: str, encoding: str) -> bytes:
    """Encode `text` as UTF-8 or UTF-32. Raises DtypeError if it is not a str, RangeError for a lone surrogate."""
    if not isinstance(text, str):
        raise DtypeError(f"a tokenizer needs text of type str, not {type(text).__name__}")
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise RangeError(
            f"the code point at position {error.start} (U+{ord(text[error.start]):04X}) is half of a surrogate "
            "pair, not a character: read the text with encoding='utf-8'"
        ) from error
