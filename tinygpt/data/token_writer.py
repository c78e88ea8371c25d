"""From documents to a token file in one pass: encode, count, and set some documents aside for validation.

    written = write_documents(Documents("books/"), tokenizer, "tokens.npy", "the books", validation_fraction=0.1)

The training documents come first in the file, each followed by the end token, then those for validation. Documents are
chosen for validation at random while they are read (`division.py`), so that nothing needs to be read twice. A character
vocabulary is known only after everything has been read: `CharacterVocabulary` numbers the characters in the order in
which they occur, and the ids in the finished file are then renumbered in sorted order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np

from ..errors import UsageError
from ..files import atomic_write, explain_os_errors
from ..tokenizers import Tokenizer, UnknownCharacterError
from .character_vocabulary import CharacterVocabulary
from .division import divided
from .documents import Piece
from .tokens import division_bytes, token_dtype, write_header

_TOGETHER = 1 << 20  # characters of short documents that are encoded together
_CHUNK = 1 << 22  # ids that are put in order at a time


@dataclass
class Written:
    """What was written: [for training, for validation]. cut: the end of the text is for validation instead."""

    tokens: list[int]
    documents: list[int]
    cut: bool = False


def write_documents(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer | CharacterVocabulary,
    path: str | os.PathLike[str],
    name: str,
    validation_fraction: float | None = None,
    cross_documents: bool = False,
) -> Written:
    """Encode documents into the token file `path`, atomically.

    validation_fraction: the share of the documents to set aside; each document is then followed by the tokenizer's end
    token. None: a single text, which has no end tokens, and which `split` cuts. cross_documents: don't store the id of
    the end token, so that windows are drawn as from a single text. name: what error messages call the text.
    Raises UsageError if there are no tokens or the tokenizer has no end token, and as `write_tokens` does.
    """
    one = validation_fraction is None
    end = None if one else _end_id(tokenizer)
    if end is None and not one and not cross_documents:
        raise UsageError(
            f"the tokenizer has no end token to keep the documents of {name} apart: use another tokenizer, or join the "
            "documents with --cross-documents"
        )
    written = Written([0, 0], [0, 0])
    parts = ((0, piece) for piece in pieces) if validation_fraction is None else divided(pieces, validation_fraction)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explain_os_errors("write", path))
        file = stack.enter_context(atomic_write(path, "w+b"))
        sink = _Sink(file, stack.enter_context(tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path)))))
        for part, ids, last in _encoded(parts, tokenizer, name):
            sink.fit(tokenizer)
            written.tokens[part] += sink.write(part, ids)
            if last:
                written.documents[part] += 1
                written.tokens[part] += sink.write(part, np.full(1, end)) if end is not None else 0
        if sum(written.tokens) == 0:  # the exception removes the temporary file
            raise UsageError(
                f"{name} is empty, or the tokenizer knows none of its characters: there are no tokens to write"
            )
        sink.join()
        if isinstance(tokenizer, CharacterVocabulary):
            sink.put_in_order(tokenizer.order())
            end = tokenizer.tokenizer().eos_token_id
        sink.finish()
        if validation_fraction is not None:
            boundary = _boundary(written, validation_fraction)
            file.write(division_bytes(validation_fraction, boundary, None if cross_documents else end))
    return written


def _end_id(tokenizer: Tokenizer | CharacterVocabulary) -> int | None:
    """The id that the end token has while the text is encoded."""
    if isinstance(tokenizer, CharacterVocabulary):
        return 0 if tokenizer.end_token else None
    return tokenizer.eos_token_id


def _boundary(written: Written, fraction: float) -> int:
    """The number of training tokens. If too few documents could be set aside, the end of the text is for validation."""
    train, validation = written.tokens
    if validation < 0.5 * fraction * (train + validation):  # there are a few long documents: one of them is cut
        written.cut = True
        return int((1.0 - fraction) * (train + validation))
    return train


class _Text(NamedTuple):
    """A part of a document that is encoded by itself."""

    part: int  # what its document is for
    text: str
    last: bool
    number: int  # of its document, from 1
    position: int  # its first character's, in the document


def _texts(parts: Iterable[tuple[int, Piece]], tokenizer: Tokenizer | CharacterVocabulary) -> Iterator[_Text]:
    """The documents in pieces that the tokenizer may encode separately."""
    source = iter(parts)
    for number, (part, first) in enumerate(source, 1):
        pieces = _until_last(first, source)
        position, before = 0, ""
        for text in pieces if isinstance(tokenizer, CharacterVocabulary) else tokenizer.whole_pieces(pieces):
            if before:
                yield _Text(part, before, False, number, position)
            position, before = position + len(before), text
        yield _Text(part, before, True, number, position)


def _until_last(piece: Piece, rest: Iterator[tuple[int, Piece]]) -> Iterator[str]:
    yield piece.text
    while not piece.last:
        piece = next(rest)[1]
        yield piece.text


def _encoded(
    parts: Iterable[tuple[int, Piece]], tokenizer: Tokenizer | CharacterVocabulary, name: str
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """What each piece is for, its ids, and whether its document ends with it. Short documents are encoded together."""
    for texts in _together(_texts(parts, tokenizer)):
        try:
            rows = tokenizer.batch_encode([piece.text for piece in texts])
        except UnknownCharacterError as error:
            raise _unknown_character(texts, tokenizer, name) or error from None
        for piece, ids in zip(texts, rows, strict=True):
            yield piece.part, ids, piece.last


def _together(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
    held: list[_Text] = []
    size = 0
    for piece in texts:
        held.append(piece)
        size += len(piece.text)
        if size >= _TOGETHER or len(held) >= _TOGETHER >> 4:
            yield held
            held, size = [], 0
    if held:
        yield held


def _unknown_character(
    texts: list[_Text], tokenizer: Tokenizer | CharacterVocabulary, name: str
) -> UnknownCharacterError | None:
    """The error of the first text with an unknown character, with its place in the document."""
    for piece in texts:
        try:
            tokenizer.encode(piece.text)
        except UnknownCharacterError as error:
            where = name if piece.number == 1 else f"document {piece.number} of {name}"
            return UnknownCharacterError(error.character, piece.position + error.position, tokenizer.vocab_size, where)
    return None


class _Sink:
    """The array of a token file being written: training tokens go to `file`, those for validation to `aside`."""

    def __init__(self, file: IO[bytes], aside: IO[bytes]) -> None:
        self.files, self.counts, self.dtype = (file, aside), [0, 0], token_dtype(1)
        write_header(file, 0, self.dtype)
        self.begins = [file.tell(), 0]

    def fit(self, tokenizer: Tokenizer | CharacterVocabulary) -> None:
        """Use the dtype that the tokenizer's ids need. A character vocabulary may outgrow the dtype in use."""
        dtype = token_dtype(tokenizer.vocab_size)
        if dtype != self.dtype:
            for file, begin, count in zip(self.files, self.begins, self.counts, strict=True):
                for start in reversed(range(0, count, _CHUNK)):  # from the end, so that nothing unread is overwritten
                    wide = self._read(file, begin, start, count).astype(dtype)
                    file.seek(begin + start * dtype.itemsize)
                    file.write(wide.tobytes())
                file.seek(0, os.SEEK_END)
            self.dtype = dtype

    def _read(self, file: IO[bytes], begin: int, start: int, count: int) -> np.ndarray:
        file.seek(begin + start * self.dtype.itemsize)
        return np.frombuffer(file.read(min(_CHUNK, count - start) * self.dtype.itemsize), self.dtype)

    def write(self, part: int, ids: np.ndarray) -> int:
        self.files[part].write(ids.astype(self.dtype).tobytes())
        self.counts[part] += len(ids)
        return len(ids)

    def join(self) -> None:
        """Append the validation tokens to the training tokens."""
        self.files[1].seek(0)
        shutil.copyfileobj(self.files[1], self.files[0], 1 << 20)
        self.counts = [sum(self.counts), 0]

    def put_in_order(self, order: np.ndarray) -> None:
        """Replace each id by order[id]."""
        if (order == np.arange(len(order))).all():
            return
        (file, _), (count, _), (begin, _) = self.files, self.counts, self.begins
        for start in range(0, count, _CHUNK):
            ids = order[self._read(file, begin, start, count)]
            file.seek(begin + start * self.dtype.itemsize)
            file.write(ids.astype(self.dtype).tobytes())

    def finish(self) -> None:
        """Write the header, whose length does not depend on the count, and go to the end of the file."""
        self.files[0].seek(0)
        write_header(self.files[0], self.counts[0], self.dtype)
        self.files[0].seek(0, os.SEEK_END)
