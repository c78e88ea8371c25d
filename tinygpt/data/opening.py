"""Open text files: plain or compressed, in any encoding, or standard input; read in bounded memory.

    with opened("reviews.csv.gz") as file:           # by the name's last suffix: .gz, .xz, .zst
        for text in decoded(file, "utf-8", "the file reviews.csv.gz"):
            ...

A byte order mark at the beginning determines the encoding, whatever was asked for, since a text never begins with one
by chance. It is not part of the text.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import importlib
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import IO, Any

from ..errors import UsageError, missing_extra
from ..files import explain_os_errors, shown

STDIN = "-"
CHUNK_BYTES = 1 << 20
COMPRESSED = (".gz", ".xz", ".zst")
# UTF-32's marks come first: its little-endian one begins with UTF-16's. The codecs' names are those without a mark,
# because the mark is removed before decoding.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"), (b"\x84\x31\x95\x33", "gb18030"),
)  # fmt: skip
_LONGEST_MARK = 4


def suffix(path: str | os.PathLike[str]) -> str:
    """The kind of a file, from its name: ".csv" for reviews.csv and for reviews.CSV.gz."""
    name = PurePath(path)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.suffix.lower()


def described(path: str | os.PathLike[str]) -> str:
    """What error messages call it."""
    return "the standard input" if os.fspath(path) == STDIN else f"the file {shown(path)}"


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed; "-" is the standard input.

    Raises UsageError if the file can't be read, or if what is compressed is damaged or cut short, and MissingExtraError
    for .zst without the library, before Python 3.14.
    """
    if os.fspath(path) == STDIN:
        yield _standard_input()
        return
    kind = PurePath(path).suffix.lower()
    open_it, damages = _opener(kind)
    try:
        with explain_os_errors("read", path), open_it(path) as file:
            yield file
    except damages as error:
        if isinstance(error, UsageError):
            raise
        raise _damaged(path, error) from error
    except UsageError as error:
        if isinstance(error.__cause__, gzip.BadGzipFile):  # an OSError, so it was taken for a disk error
            raise _damaged(path, error.__cause__) from error.__cause__
        raise


def _damaged(path: str | os.PathLike[str], error: BaseException) -> UsageError:
    return UsageError(
        f"the compressed file {shown(path)} is damaged or cut short ({error}): copy it again, or check it with "
        f"{ {'.gz': 'gzip', '.xz': 'xz', '.zst': 'zstd'}[PurePath(path).suffix.lower()] } -t"
    )


def _opener(kind: str) -> tuple[Callable[[Any], Any], tuple[type[BaseException], ...]]:
    """How a file with this suffix is opened, and the errors that mean it is damaged."""
    if kind == ".gz":
        return gzip.open, (EOFError, zlib.error)
    if kind == ".xz":
        return lzma.open, (EOFError, lzma.LZMAError)
    if kind == ".zst":
        library = zstandard()
        return library.open, (EOFError, library.ZstdError)
    return lambda path: open(path, "rb"), ()


def require_zstandard(*paths: str | os.PathLike[str] | None) -> None:
    """Raise MissingExtraError if one of the files is a .zst, and the library for these is missing."""
    if any(PurePath(path).suffix.lower() == ".zst" for path in paths if path is not None):
        zstandard()


def zstandard() -> Any:
    """The module for .zst files: the standard library's from Python 3.14 on. Raises MissingExtraError."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise missing_extra("backports.zstd", "reading .zst files")


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise UsageError("there is no standard input to read the text from")
    return getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode("utf-8"))


def check_encoding(encoding: str) -> str:
    """The codec's own name for an encoding. Raises UsageError if there is no such encoding, or it isn't for text."""
    try:
        codec = codecs.lookup(encoding)
        codecs.getincrementaldecoder(codec.name)()
        with contextlib.suppress(UnicodeDecodeError):  # of half a character
            b"a".decode(codec.name)
    except (LookupError, ValueError):  # unknown; not one of text, such as base64; a NUL in the name
        raise UsageError(
            f"there is no encoding {encoding!r}: give one that Python knows, such as utf-8, gb18030, latin-1 or utf-16"
        ) from None
    return codec.name


def decoded(
    file: IO[bytes],
    encoding: str,
    name: str,
    chunk_bytes: int = CHUNK_BYTES,
    see: Callable[[bytes], object] | None = None,
) -> Iterator[str]:
    """The text of an open file without its byte order mark, a chunk at a time; no character is cut.

    name: what error messages call the file. see: called with the bytes, chunk by chunk; a hash's `update`.
    Raises UsageError where the bytes are not text in this encoding; it names the byte and the line.
    """
    begin = file.read(max(chunk_bytes, _LONGEST_MARK))
    mark, encoding = next((found for found in _MARKS if begin.startswith(found[0])), (b"", encoding))
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, line = len(mark), 1
    for data in _chunks(file, begin, chunk_bytes):
        if see is not None:
            see(data)
        data = data[len(mark) :] if mark else data
        mark = b""
        held = len(decoder.getstate()[0])  # bytes of an incomplete character, before `offset`
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _undecodable(error, encoding, name, offset - held, line) from error
        offset += len(data)
        line += text.count("\n")
        if text:
            yield text


def _chunks(file: IO[bytes], begin: bytes, chunk_bytes: int) -> Iterator[bytes]:
    """All bytes of the file, and an empty chunk at the end. begin: the first chunk, read already."""
    while begin:
        yield begin
        begin = file.read(chunk_bytes)
    yield b""


def _undecodable(error: UnicodeDecodeError, encoding: str, name: str, begin: int, line: int) -> UsageError:
    kind = "UTF-8" if encoding == "utf-8" else encoding
    line += error.object[: error.start].decode(encoding, errors="replace").count("\n")
    return UsageError(
        f"{name} is not {kind} text: byte {begin + error.start} (0x{error.object[error.start]:02x}) in line {line} is "
        f"invalid ({error.reason}); save the file as UTF-8, or give the encoding that it has"
    )
