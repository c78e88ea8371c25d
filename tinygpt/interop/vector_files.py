"""Read files of word vectors row by row: word2vec's binary and text formats, fastText's .vec, GloVe's text.

    with VectorFile(path) as file:                # .gz is unpacked as it is read
        for word, stored in file: ...             # file.width numbers each
            vector = file.numbers(stored)         # float32, shape (width,)

The first line has the number of vectors and their width; GloVe's files lack it. In the binary format a word ends at a
space, and float32 numbers follow. A header is never trusted to allocate memory: at most a megabyte, or one row, is in
memory at a time. A word that is not UTF-8 is read as Latin-1, the encoding of some older files.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ..errors import UsageError

_WIDEST = 1 << 16  # numbers in a vector
_LONGEST_WORD = 1 << 12  # bytes
_LONGEST_NUMBER = 64
_OTHERS = {
    b"\xba\x16\x4f\x2f": "is a model of fastText (.bin), not a file of vectors: use the .vec file that comes with it",
    b"\x80": "is a pickle, such as gensim's .kv, which can run code: save it by save_word2vec_format",
    b"PK\x03\x04": "is a zip archive: unpack it first",
}


class VectorFile:
    """An open file of vectors: `width`, `count` (None without a header) and `binary`. Raises UsageError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.row = 0  # rows read so far
        self._raw: Any = None
        try:
            self._raw = open(self.path, "rb")  # noqa: SIM115  closed by __exit__
            packed = self._raw.peek(2)[:2] == b"\x1f\x8b"
            self._file: IO[bytes] = (
                io.BufferedReader(gzip.GzipFile(fileobj=self._raw), 1 << 20) if packed else self._raw
            )
            self._read_header()
        except BaseException as error:
            self.__exit__()
            raise self._explained(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._raw is not None:
            self._raw.close()

    def _read_header(self) -> None:
        first = self._file.readline(_WIDEST * _LONGEST_NUMBER)
        for start, what in _OTHERS.items():
            if first.startswith(start):
                raise UsageError(f"{self.path} {what}")
        fields = first.split()
        self._first: bytes | None = None  # a first line that is a vector
        self.count: int | None = None
        if len(fields) == 2 and all(field.isdigit() and len(field) < 16 for field in fields):
            self.count, self.width = int(fields[0]), int(fields[1])
            self.binary = not (self._is_row(self._sample()) or self._is_text())
        else:
            self.width, self.binary, self._first = len(fields) - 1, False, first
            if self.width < 2 or not self._is_row(first):
                raise UsageError(
                    f"{self.path} is not a file of word vectors: its first line is {first[:40]!r}, neither the number "
                    "of vectors and their width nor a word and numbers"
                )
        if not 1 <= self.width <= _WIDEST:
            raise UsageError(f"{self.path} has vectors of {self.width} numbers; they must be 1 to {_WIDEST}")

    def _sample(self) -> bytes:
        """The first row, if it is text."""
        peeked: bytes = self._file.peek(1 << 16)  # type: ignore[attr-defined]
        return peeked.split(b"\n", 1)[0]

    def _is_text(self) -> bool:
        """Whether the first vector, taken as binary, consists of printable characters: then these are bad numbers."""
        peeked: bytes = self._file.peek(1 << 16)  # type: ignore[attr-defined]
        numbers = peeked.partition(b" ")[2][: 4 * self.width]
        return len(numbers) > 1 and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in numbers)

    def _is_row(self, line: bytes) -> bool:
        fields = line.split()[-self.width :] if self.width else []
        try:
            [float(field) for field in fields]
        except ValueError:
            return False
        return len(fields) == self.width

    # Rows -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Each word and its stored numbers. Raises UsageError for a row that is damaged or missing."""
        try:
            for word, stored in self._binary_rows() if self.binary else self._text_rows():
                self.row += 1
                yield _text(word), stored
        except UsageError:
            raise
        except Exception as error:
            raise self._explained(error) from error
        if self.count is not None and self.row < self.count:
            raise UsageError(
                f"{self.path} is cut short: it has {self.row} of the {self.count} vectors of its first line"
            )

    def _binary_rows(self) -> Iterator[tuple[bytes, bytes]]:
        size, buffer, begin = 4 * self.width, b"", 0
        for _ in range(self.count or 0):
            if len(buffer) - begin < _LONGEST_WORD + size:
                buffer, begin = buffer[begin:] + self._file.read(max(1 << 20, _LONGEST_WORD + size)), 0
            end = buffer.find(b" ", begin, begin + _LONGEST_WORD)
            if end < 0 and len(buffer) - begin >= _LONGEST_WORD:
                raise UsageError(
                    f"{self.path} is damaged: no word of at most {_LONGEST_WORD} bytes begins vector {self.row + 1}"
                )
            if end < 0 or len(buffer) < end + 1 + size:
                return  # cut short
            yield buffer[begin:end].lstrip(b"\n"), buffer[end + 1 : end + 1 + size]
            begin = end + 1 + size

    def _text_rows(self) -> Iterator[tuple[bytes, bytes]]:
        longest = self.width * _LONGEST_NUMBER + _LONGEST_WORD
        while True:
            line = self._first if self._first is not None else self._file.readline(longest)
            self._first = None
            if not line:
                return
            row = line.strip(b" \t\r\n")
            if not row:
                continue
            fields = row.rsplit(None, self.width)  # a word may have spaces in it
            if len(fields) == self.width and line[:1].isspace() and self._is_row(row):
                fields = [b"", *fields]  # or be nothing but a space, as in texts that were cut at each space
                row = b" " + row
            if len(fields) != self.width + 1 or len(line) == longest:
                raise UsageError(
                    f"{self.path}, vector {self.row + 1}: expected a word and {self.width} numbers, but there are "
                    f"{len(fields) - 1}, after {fields[0][:40]!r}"
                )
            yield fields[0], row[len(fields[0]) :]

    def numbers(self, stored: bytes) -> np.ndarray:
        """The numbers of a row (width,), float32."""
        try:
            found = np.frombuffer(stored, "<f4") if self.binary else np.array(stored.split(), dtype="f8").astype("f4")
        except ValueError:
            raise UsageError(f"{self.path}, vector {self.row}: {stored[:40]!r} are not {self.width} numbers") from None
        if not np.isfinite(found).all():
            raise UsageError(f"{self.path}, vector {self.row}: not all of its numbers are finite")
        return found.astype(np.float32)

    def _explained(self, error: BaseException) -> BaseException:
        """The sentence for an error of the file or of what unpacks it."""
        if isinstance(error, FileNotFoundError):
            return UsageError(f"there is no file {self.path}")
        if isinstance(error, EOFError | gzip.BadGzipFile | zlib.error):
            return UsageError(f"{self.path} is damaged or cut short: {error}")
        if isinstance(error, OSError):
            return UsageError(f"cannot read {self.path}: {error.strerror or error}")
        return error


def _text(word: bytes) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError:
        return word.decode("latin-1")
