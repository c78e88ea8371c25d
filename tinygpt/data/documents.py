"""Documents: the texts that a corpus is made of, read piece by piece in bounded memory.

    for piece in Documents(["books/", "more.jsonl.gz"]):
        piece.text, piece.last                   # a part of a document; whether the document ends with it

A plain text file (.txt, .md or any other that is not a table) is one document; a table (.jsonl, .csv, .tsv) has one in
each row, in its column `text`. Every document has at least one character: empty ones are skipped.

What can't be read is an error that names all such files, or is skipped and counted (`skip_bad`). A file is skipped as a
whole: with `skip_bad` each file is read once before its text is used.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ..errors import MissingExtraError, UsageError
from .opening import STDIN, check_encoding, described, suffix
from .rows import SUFFIXES as TABLES
from .rows import BadRows, read_rows
from .sources import find_files
from .tokens import read_text

COLUMN = "text"
NEWLINES = ("keep", "unix")
_LOOK_AHEAD = 1000  # files that are read to name those with the same fault


class Piece(NamedTuple):
    """A part of a document, not empty; `last`: the document ends with it."""

    text: str
    last: bool


class Documents:
    """The documents of files, folders and patterns, in order. May be iterated again, unless it is a pipe.

    names: as `find_files` takes them. newlines: "unix" turns \\r\\n and \\r into \\n. skip_bad: skip what can't be
    read; `bad` counts it. see: called with the bytes that are read; a hash's `update`. keep_nul: allow NUL characters.
    Raises UsageError, at once for names and settings, later for contents.
    """

    def __init__(
        self,
        names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        encoding: str = "utf-8",
        newlines: str = "keep",
        skip_bad: bool = False,
        see: Callable[[bytes], object] | None = None,
        keep_nul: bool = False,
    ) -> None:
        self.files = find_files([names] if isinstance(names, (str, os.PathLike)) else names)
        self.encoding = check_encoding(encoding)
        if newlines not in NEWLINES:
            raise UsageError(f"newlines must be one of {', '.join(NEWLINES)}, not {newlines!r}")
        self.newlines, self.skip_bad, self.see, self.keep_nul = newlines, skip_bad, see, keep_nul
        self.bad = BadRows()

    @property
    def single(self) -> bool:
        """Whether this is one plain text: a file, or the standard input."""
        return len(self.files) == 1 and not _is_table(self.files[0])

    def __iter__(self) -> Iterator[Piece]:
        self.bad = BadRows()
        for number, path in enumerate(self.files):
            if self.skip_bad and path != STDIN and not _is_table(path):
                wrong = self._wrong(path)
                if wrong is not None:
                    self.bad.add(str(wrong))
                    continue
            try:
                yield from self._rows(path) if _is_table(path) else self._text(path)
            except MissingExtraError:
                raise
            except UsageError as error:
                raise self._with_others(error, self.files[number + 1 : number + 1 + _LOOK_AHEAD]) from error

    def _text(self, path: str, see: Callable[[bytes], object] | None = None) -> Iterator[Piece]:
        pieces: Iterable[str] = read_text(path, see=see or self.see, encoding=self.encoding)
        if not self.keep_nul:
            pieces = _without_nul(pieces, described(path))
        pieces = _unix(pieces) if self.newlines == "unix" else pieces
        before = None
        for piece in pieces:
            if before is not None:
                yield Piece(before, False)
            before = piece
        if before is not None:
            yield Piece(before, True)

    def _rows(self, path: str) -> Iterator[Piece]:
        bad = self.bad if self.skip_bad else None
        for row in read_rows(path, self.encoding, [COLUMN], bad, self.see):
            text, wrong = row.values[COLUMN], ""
            if not isinstance(text, str):
                wrong = f"{row.where}: the column {COLUMN!r} must hold a text, not {text!r:.40}"
            elif "\0" in text and not self.keep_nul:
                wrong = f"{row.where}: {_NUL}"
            if wrong and bad is None:
                raise UsageError(wrong)
            if wrong:
                self.bad.add(wrong)
            elif text:
                yield Piece("".join(_unix([text])) if self.newlines == "unix" else text, True)

    def _wrong(self, path: str) -> UsageError | None:
        """The error that reading a plain text file gives."""
        try:
            for _ in self._text(path, see=lambda data: None):
                pass
        except MissingExtraError:
            raise
        except UsageError as error:
            return error
        return None

    def _with_others(self, error: UsageError, rest: list[str]) -> UsageError:
        """The error about a file, together with the next files that can't be read, so that all can be fixed at once."""
        found = [str(error)]
        others = (self._wrong(path) for path in rest if path != STDIN and not _is_table(path))
        found += [str(wrong) for wrong in others if wrong is not None]
        if len(self.files) == 1:
            return error
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        many = f"{len(found)} of {len(self.files)} files can't be read: " if len(found) > 1 else ""
        return UsageError(f"{many}{'; '.join(found[:3])}{more}; --skip-bad-files leaves such files and rows out")


_NUL = "there is a NUL character, so it is not text, or it is UTF-16 without a byte order mark (--encoding utf-16)"


def _is_table(path: str) -> bool:
    return suffix(path) in TABLES


def _without_nul(pieces: Iterable[str], name: str) -> Iterator[str]:
    line = 1
    for piece in pieces:
        if (position := piece.find("\0")) >= 0:
            raise UsageError(f"{name}, line {line + piece.count(chr(10), 0, position)}: {_NUL}")
        line += piece.count("\n")
        yield piece


def _unix(pieces: Iterable[str]) -> Iterator[str]:
    """The text with \\n for \\r\\n and \\r."""
    held = ""  # a \r that may be half of \r\n
    for piece in itertools.chain(pieces, [""]):
        text = held + piece
        held = "\r" if piece and text.endswith("\r") else ""
        text = text.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n")
        if text:
            yield text
