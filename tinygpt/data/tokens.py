"""Convert text files of any length to token files in bounded memory.

A token file is an ordinary one-dimensional `.npy` array, uint16 if the ids fit and uint32 otherwise, so
`numpy.load(path, mmap_mode="r")` opens it anywhere. We memory-map it rather than read it: the operating
system caches and evicts the pages that training touches, so a corpus may be larger than memory. (Tools that
report a process's size count those pages, although they can be reclaimed at any time.) After the array, where
readers of `.npy` don't look, the file may store where its validation text begins, which `split` uses, and the id of the
token that ends a document, which batches use.

The text is encoded unchanged: line breaks are not translated, nothing is stripped or normalised. The one
exception is a byte-order mark at the very beginning, which is not part of the text.
"""

from __future__ import annotations

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
from .opening import CHUNK_BYTES, check_encoding, decoded, described, opened

# The end of a line that ends in a letter or a digit: a natural place to split. BPE tokenizers, which merge
# characters, make sure themselves that no token is split (Tokenizer.whole_pieces).
_GOOD_SPLIT = re.compile(r"\w(?=\r?\n)")
_SPLIT_WINDOW = 1 << 16  # characters at the end of a piece to search for it
# After the array: name, version, validation_fraction, training tokens; and the id of the end token, if there is one.
_DIVISION, _END = struct.Struct("<15sBdQ"), struct.Struct("<Q")
_NAME, _VERSION, _WITH_END = b"tinygpt-divided", 1, 2


def read_text(
    path: str | os.PathLike[str],
    chunk_bytes: int = CHUNK_BYTES,
    see: Callable[[bytes], object] | None = None,
    encoding: str = "utf-8",
) -> Iterator[str]:
    """Yield the text of a file in pieces of about `chunk_bytes`, split at line ends where possible.

    The file may be compressed, by its name (.gz, .xz, .zst); a byte order mark says which encoding it really has.
    see: called with the bytes of the file, decompressed, chunk by chunk; a hash's `update`, for instance.
    Raises UsageError if the file can't be opened or is not text in this encoding; the message names the byte.
    """
    rest = ""
    with opened(path) as file:
        for text in decoded(file, check_encoding(encoding), described(path), chunk_bytes, see):
            piece, rest = _split_piece(rest + text)
            if piece:
                yield piece
    if rest:
        yield rest


def _split_piece(text: str) -> tuple[str, str]:
    """Split `text` in two at the last good position; without one, the first part is all of it."""
    ends = [match.end() for match in _GOOD_SPLIT.finditer(text, max(0, len(text) - _SPLIT_WINDOW))]
    end = ends[-1] if ends else len(text)
    return text[:end], text[end:]


def write_tokens(
    source: str | os.PathLike[str] | Iterable[str], tokenizer: Tokenizer, path: str | os.PathLike[str]
) -> int:
    """Encode `source` and write the ids to the token file `path`. Returns the number of ids.

    source: the path of a UTF-8 text file, or pieces of text; how the text is split does not affect the ids.
    The file is written atomically. Raises UsageError for an empty text, a file that is not UTF-8, or a path
    that can't be written, and UnknownCharacterError if the tokenizer's policy is to refuse unknown characters.
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
    """Like `write_tokens`, for a text in parts, none of whose tokens cross into the next part. Returns ids per part.

    validation_fraction: `split`, called with this fraction, then splits the tokens after the first part.
    name: what error messages call the text.
    """
    counts = [0] * len(parts)

    def rows() -> Iterator[np.ndarray]:
        for index, part in enumerate(parts):
            for ids in encoded(part, tokenizer, name):
                counts[index] += len(ids)
                yield ids

    with explain_os_errors("write", path), atomic_write(path) as file:
        count = _write_array(file, rows(), token_dtype(tokenizer.vocab_size))
        if count == 0:  # the exception removes the temporary file
            raise UsageError(
                f"{name} is empty, or the tokenizer knows none of its characters: there are no tokens to write"
            )
        if validation_fraction is not None:
            file.seek(0, os.SEEK_END)
            file.write(division_bytes(validation_fraction, counts[0], None))
    return counts


def division_bytes(validation_fraction: float, train_count: int, end_token: int | None) -> bytes:
    """What a token file has after its array. validation_fraction: 0 to store only the end token."""
    version = _VERSION if end_token is None else _WITH_END
    end = b"" if end_token is None else _END.pack(end_token)
    return _DIVISION.pack(_NAME, version, validation_fraction, train_count) + end


def encoded(pieces: Iterable[str], tokenizer: Tokenizer, name: str) -> Iterator[np.ndarray]:
    position = 0  # in characters, from the beginning of the text
    for piece in tokenizer.whole_pieces(pieces):
        try:
            yield tokenizer.encode(piece)
        except UnknownCharacterError as error:
            raise UnknownCharacterError(
                error.character, position + error.position, tokenizer.vocab_size, name
            ) from None
        position += len(piece)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest token-file dtype that holds the ids 0 .. vocab_size - 1."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _write_array(file: IO[bytes], rows: Iterable[np.ndarray], dtype: np.dtype[Any]) -> int:
    """Write a `.npy` array whose length is known only at the end. Returns the length.

    NumPy pads the header so that its size does not depend on the number of digits of the length; this lets us
    overwrite it at the end.
    """
    write_header(file, 0, dtype)
    begin, count = file.tell(), 0
    for ids in rows:
        file.write(ids.astype(dtype).tobytes())
        count += len(ids)
    file.seek(0)
    write_header(file, count, dtype)
    if file.tell() != begin:
        raise RuntimeError(f"the .npy header grew from {begin} to {file.tell()} bytes")
    return count


def write_header(file: IO[bytes], count: int, dtype: np.dtype[Any]) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


class TokenFile(np.memmap):  # type: ignore[type-arg, unused-ignore]
    """A token file. division: `(validation_fraction, training tokens)` if the file has them; end_token: the id that
    ends a document. None for slices, but `split` passes the end token on."""

    division: tuple[float, int] | None = None
    end_token: int | None = None


def open_tokens(path: str | os.PathLike[str]) -> np.ndarray:
    """Memory-map a token file, read-only: integers, shape (N,).

    Raises UsageError if the file can't be opened, CheckpointError if it is damaged, truncated or not a token file.
    """
    with explain_os_errors("read", path), open(path, "rb"):
        pass
    try:
        tokens = np.lib.format.open_memmap(path, mode="r").view(TokenFile)
    except Exception as error:  # NumPy raises many kinds of errors for a damaged header
        raise CheckpointError(
            f"the token file {shown(path)} is damaged or cut short ({error}): write it again"
        ) from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise CheckpointError(
            f"{shown(path)} is not a token file: it holds {tokens.dtype} of shape {tokens.shape}, "
            "not integers of shape (N,)"
        )
    tokens.division, tokens.end_token = _division(path, tokens)
    return tokens


def _division(path: str | os.PathLike[str], tokens: TokenFile) -> tuple[tuple[float, int] | None, int | None]:
    with explain_os_errors("read", path), open(path, "rb") as file:
        file.seek(tokens.offset + tokens.nbytes)
        content = file.read(_DIVISION.size + _END.size + 1)
    if not content:
        return None, None
    try:
        name, version, fraction, count = _DIVISION.unpack(content[: _DIVISION.size])
        end = _END.unpack(content[_DIVISION.size :])[0] if version == _WITH_END else None
        if end is None and (version != _VERSION or len(content) != _DIVISION.size):
            raise ValueError
        if name != _NAME or not 0 <= fraction < 1 or (end is None and fraction == 0) or count > len(tokens):
            raise ValueError
    except (struct.error, ValueError):
        raise CheckpointError(
            f"the token file {shown(path)} is damaged: the {len(content)} or more bytes after its array were not "
            "written by tinygpt; write it again"
        ) from None
    return (fraction, count) if fraction else None, end


def split(tokens: np.ndarray, validation_fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """`(train, validation)`: views of the first `int((1 - validation_fraction) * N)` tokens and of the rest.

    If the token file stores where its validation text begins for this fraction, that position is used. A run with BPE
    stores it, because its tokenizer was trained on the training text alone, and one on documents, because those are not
    cut. Both parts have the file's `end_token`.
    """
    if not 0.0 <= validation_fraction < 1.0:  # false for nan too
        raise RangeError(f"validation_fraction must be at least 0 and less than 1, not {validation_fraction}")
    tokens = check_tokens(tokens)
    boundary = int((1.0 - validation_fraction) * len(tokens))
    division = getattr(tokens, "division", None)
    if division is not None and division[0] == validation_fraction:
        boundary = division[1]
    parts = tokens[:boundary], tokens[boundary:]
    for part in parts:
        if isinstance(part, TokenFile):
            part.end_token = getattr(tokens, "end_token", None)
    return parts
