"""Text files to token files: of any length, in bounded memory.

A token file is an ordinary `.npy` array of one axis: uint16 while the ids fit, uint32 beyond, so that
`numpy.load(path, mmap_mode="r")` reads it anywhere. It is mapped into memory, not read: the pages that
training touches are the operating system's to keep or to drop, so a corpus may exceed the memory. (Tools
that report a process's size count those pages, though they can be reclaimed at any time.) Behind the array,
where readers of `.npy` do not look, may stand where its validation text begins: `split` heeds it.

The text is kept as it is: line breaks are not translated, nothing is stripped or normalised. The one
exception is a byte-order mark at the very beginning, which is no part of the text.
"""

from __future__ import annotations

import codecs
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from ..checks import check_tokens
from ..errors import CheckpointError, RangeError, UsageError
from ..files import atomic_write, explain_os_errors, shown
from ..tokenizers import Tokenizer, UnknownCharacterError

CHUNK_BYTES = 1 << 20
# The end of a line that ends in a letter or a digit: a border that a reader would choose. Tokenizers that merge
# characters (BPE) see to it themselves that no token is cut (Tokenizer.whole_pieces).
_GOOD_CUT = re.compile(r"\w(?=\r?\n)")
_CUT_WINDOW = 1 << 16  # characters at the end of a piece in which to look for it
_DIVISION = struct.Struct("<15sBdQ")  # behind the array: a name, a version, validation_fraction, training tokens
_NAME, _VERSION = b"tinygpt-divided", 1


def read_text(
    path: str | os.PathLike[str], chunk_bytes: int = CHUNK_BYTES, see: Callable[[bytes], object] | None = None
) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of about `chunk_bytes`, cut at the end of a line where possible.

    see: is called with all bytes of the file, in their order, such as the `update` of a hash.
    Raises UsageError where the file can't be opened or is not UTF-8; the sentence names the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, offset, start = "", 0, True
    with explain_os_errors("read", path), open(path, "rb") as file:
        while True:
            data = file.read(chunk_bytes)
            if see is not None:
                see(data)
            held = len(decoder.getstate()[0])  # bytes of an unfinished character, before `offset`
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"the file {shown(path)} is not UTF-8 text: byte {offset - held + error.start} "
                    f"(0x{error.object[error.start]:02x}) fits no character ({error.reason}); save the file as UTF-8"
                ) from error
            offset += len(data)
            if start and text:
                text, start = text.removeprefix("\ufeff"), False
            piece, rest = _cut(rest + text) if data else (rest + text, "")
            if piece:
                yield piece
            if not data:
                return


def _cut(text: str) -> tuple[str, str]:
    """`text` in two at the last good place; all of it is the first part where there is none."""
    places = [match.end() for match in _GOOD_CUT.finditer(text, max(0, len(text) - _CUT_WINDOW))]
    place = places[-1] if places else len(text)
    return text[:place], text[place:]


def write_tokens(
    source: str | os.PathLike[str] | Iterable[str], tokenizer: Tokenizer, path: str | os.PathLike[str]
) -> int:
    """Encode `source` and write the ids to the token file `path`; returns how many there are.

    source: the path of a UTF-8 text file, or pieces of text; where it is cut makes no difference.
    The file appears whole or not at all. Raises UsageError for an empty text, a file that is not UTF-8, or a
    place that can't be written, and UnknownCharacterError as the tokenizer's policy says.
    """
    if isinstance(source, (str, os.PathLike)):
        return sum(write_token_parts([read_text(source)], tokenizer, path, f"the file {shown(source)}"))
    return sum(write_token_parts([source], tokenizer, path, "the text"))


def write_token_parts(
    parts: Sequence[Iterable[str]],
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    name: str,
    validation_fraction: float | None = None,
) -> list[int]:
    """As `write_tokens`, for a text in parts: no token reaches from one into the next. How many ids each part has.

    validation_fraction: for it `split` then divides the tokens between the first part and the rest. name: of the text.
    """
    counts = [0] * len(parts)

    def rows() -> Iterator[np.ndarray]:
        for index, part in enumerate(parts):
            for ids in _encoded(part, tokenizer, name):
                counts[index] += len(ids)
                yield ids

    with explain_os_errors("write", path), atomic_write(path) as file:
        count = _write_array(file, rows(), token_dtype(tokenizer.vocab_size))
        if count == 0:  # leaving by an exception removes the temporary file
            raise UsageError(f"{name} is empty, or the tokenizer knows none of its characters: no tokens to write")
        if validation_fraction is not None:
            file.seek(0, os.SEEK_END)
            file.write(_DIVISION.pack(_NAME, _VERSION, validation_fraction, counts[0]))
    return counts


def _encoded(pieces: Iterable[str], tokenizer: Tokenizer, name: str) -> Iterator[np.ndarray]:
    position = 0  # in characters, from the beginning of the whole text
    for piece in tokenizer.whole_pieces(pieces):
        try:
            yield tokenizer.encode(piece)
        except UnknownCharacterError as error:
            raise UnknownCharacterError(
                error.character, position + error.position, tokenizer.vocab_size, name
            ) from None
        position += len(piece)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest dtype of a token file that holds the ids 0 .. vocab_size - 1."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _write_array(file: IO[bytes], rows: Iterable[np.ndarray], dtype: np.dtype[Any]) -> int:
    """Write a `.npy` array whose length is known only at the end; returns the length.

    NumPy pads the header so that a length of any number of digits takes the same room, which is what
    lets us write it twice.
    """
    _write_header(file, 0, dtype)
    begin, count = file.tell(), 0
    for ids in rows:
        file.write(ids.astype(dtype).tobytes())
        count += len(ids)
    file.seek(0)
    _write_header(file, count, dtype)
    if file.tell() != begin:
        raise RuntimeError(f"the .npy header grew from {begin} to {file.tell()} bytes")
    return count


def _write_header(file: IO[bytes], count: int, dtype: np.dtype[Any]) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


class TokenFile(np.memmap):  # type: ignore[type-arg, unused-ignore]
    """A token file. division: `(validation_fraction, training tokens)` if the file has them; parts of it do not."""

    division: tuple[float, int] | None = None


def open_tokens(path: str | os.PathLike[str]) -> np.ndarray:
    """A token file, mapped read-only: integers, shape (N,).

    Raises UsageError where there is no such file, CheckpointError where it is damaged, cut short or no token
    file.
    """
    with explain_os_errors("read", path), open(path, "rb"):
        pass
    try:
        tokens = np.lib.format.open_memmap(path, mode="r").view(TokenFile)
    except Exception as error:  # NumPy raises errors of many kinds on a damaged header, none of them ours
        raise CheckpointError(
            f"the token file {shown(path)} is damaged or cut short ({error}): write it again"
        ) from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise CheckpointError(
            f"{shown(path)} is no token file: it holds {tokens.dtype} of shape {tokens.shape}, not integers of shape "
            "(N,)"
        )
    tokens.division = _division(path, tokens)
    return tokens


def _division(path: str | os.PathLike[str], tokens: TokenFile) -> tuple[float, int] | None:
    with explain_os_errors("read", path), open(path, "rb") as file:
        file.seek(tokens.offset + tokens.nbytes)
        content = file.read(_DIVISION.size + 1)
    if not content:
        return None
    try:
        name, version, fraction, count = _DIVISION.unpack(content)
        if (name, version) != (_NAME, _VERSION) or not 0 < fraction < 1 or count > len(tokens):
            raise ValueError
    except (struct.error, ValueError):
        raise CheckpointError(
            f"the token file {shown(path)} is damaged: {len(content)} bytes or more behind its array are not what "
            "tinygpt writes there; write it again"
        ) from None
    return fraction, count


def split(tokens: np.ndarray, validation_fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """`(train, validation)`: views of the first `int((1 - validation_fraction) * N)` tokens and of the rest.

    A token file may say itself where its validation text of this fraction begins, as that of a run with BPE does, whose
    tokenizer has seen the training text alone.
    """
    if not 0.0 <= validation_fraction < 1.0:  # false for nan too
        raise RangeError(f"validation_fraction is at least 0 and less than 1, not {validation_fraction}")
    tokens = check_tokens(tokens)
    boundary = int((1.0 - validation_fraction) * len(tokens))
    division = getattr(tokens, "division", None)
    if division is not None and division[0] == validation_fraction:
        boundary = division[1]
    return tokens[:boundary], tokens[boundary:]
