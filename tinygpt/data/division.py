"""Which documents are for training and which for validation, decided while they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from .documents import Piece

_HELD = 1 << 20  # characters of a document that are read before deciding between training and validation


def divided(pieces: Iterable[Piece], fraction: float) -> Iterator[tuple[int, Piece]]:
    """Each piece with what its document is for: 0 training, 1 validation.

    A document may be set aside if the characters set aside stay within `fraction` of those read so far. It is then set
    aside with a probability of at least 2 * fraction, higher the more characters are lacking. So the share is kept, the
    documents come from all over the text, and a periodic order has no influence. A document of more than 2**20
    characters is for training. The random number of a document is its hash, so a second pass divides the documents in
    the same way.
    """
    total, aside = 0, 0
    held: list[Piece] = []
    length, long = 0, False
    for piece in pieces:
        if long:  # the rest of a document that has been given away
            yield 0, piece
            total, long = total + len(piece.text), not piece.last
            continue
        held.append(piece)
        length += len(piece.text)
        if not piece.last and length <= _HELD:
            continue
        lacking = fraction * (total + length) - aside
        part = int(length <= min(lacking, _HELD) and _chance(held) * length < 2 * fraction * lacking)
        yield from ((part, piece) for piece in held)
        total, aside, long = total + length, aside + length * part, not piece.last
        held, length = [], 0


def _chance(document: list[Piece]) -> float:
    """The random number of a document, in [0, 1), from its hash."""
    digest = hashlib.blake2b(digest_size=4)
    for piece in document:
        digest.update(piece.text.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "big") / 2**32
