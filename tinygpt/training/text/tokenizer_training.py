"""Train a BPE or word tokenizer on the training part of a text.

That part must be determined before there are tokens to count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...data import read_text
from ...data.division import divided
from ...data.documents import Piece
from ...errors import UsageError
from ...files import explain_os_errors
from ...tokenizers import BPETokenizer, Tokenizer, WordTokenizer
from ...tokenizers.pieces import recut


def learn(kind: str, pieces: Iterable[Piece], name: str, vocab_size: int, validation_fraction: float) -> Tokenizer:
    """A tokenizer of this kind, "bpe" or "word", trained on the documents that are not for validation."""
    documents = ((part, piece) for part, piece in divided(pieces, validation_fraction))
    texts = nonempty((piece for part, piece in documents if part == 0), name)
    parts = itertools.chain.from_iterable(map(recut, _grouped(texts)))
    if kind == "word":
        return WordTokenizer.train(parts, vocab_size, end_token=True)
    return BPETokenizer.train(parts, vocab_size)


def nonempty(pieces: Iterator[Piece], name: str) -> Iterator[Piece]:
    """The same pieces. Raises UsageError if there are none."""
    first = next(pieces, None)
    if first is None:
        raise UsageError(f"{name} is empty: there is nothing to train on")
    return itertools.chain([first], pieces)


def _grouped(pieces: Iterator[Piece]) -> Iterator[Iterator[str]]:
    """The texts of each document, which must be read before the next document is asked for."""
    for first in pieces:
        yield _until_last(first, pieces)


def _until_last(piece: Piece, rest: Iterator[Piece]) -> Iterator[str]:
    yield piece.text
    while not piece.last:
        piece = next(rest)
        yield piece.text


def learn_from_one(
    kind: str, path: Path, name: str, vocab_size: int, validation_fraction: float
) -> tuple[Tokenizer, int]:
    """A tokenizer of this kind trained on the training part of one UTF-8 text, and that part's length in characters."""
    with explain_os_errors("read", path):
        size = path.stat().st_size
    pieces = _beginning(path, round((1 - validation_fraction) * size))
    first = next(pieces, None)
    if first is None:
        raise UsageError(
            f"{name if size == 0 else f'the training part of {name}'} is empty: there is nothing to train on"
        )
    length = 0

    def counted() -> Iterator[str]:
        nonlocal length
        for piece in itertools.chain([first], pieces):
            length += len(piece)
            yield piece

    train = WordTokenizer.train if kind == "word" else BPETokenizer.train
    return train(recut(counted()), vocab_size), length


def _beginning(path: Path, room: int) -> Iterator[str]:
    """The first `room` bytes of a text, without a character that is incomplete at the end."""
    for piece in read_text(path):
        data = piece.encode("utf-8")
        part = piece if len(data) <= room else data[:room].decode("utf-8", errors="ignore")
        if part:
            yield part
        room -= len(data)
        if room <= 0:
            return


def divided_text(pieces: Iterator[str], length: int) -> list[Iterator[str]]:
    """The first `length` characters, and the rest, which must be read after them."""
    rest: list[str] = []

    def first() -> Iterator[str]:
        left = length
        while left > 0 and (piece := next(pieces, "")):
            yield piece[:left]
            rest.append(piece[left:])
            left -= len(piece)

    return [first(), itertools.chain(rest, pieces)]
