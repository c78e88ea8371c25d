"""The token files of nanoGPT and llm.c, which both end in .bin.

    tokens = open_bin("train.bin", vocab_size=50257)           # (N,), memory-mapped
    write_bin("train.bin", tokens, "llm.c")

nanoGPT's contain nothing but the ids, as uint16, so the vocabulary size must be given. llm.c's begin with a header of
256 32-bit numbers: 20240520, version 1, the number of tokens, with uint16 ids; or 20240801 and version 7, with uint32
ids.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_tokens, whole_number
from ..errors import CheckpointError, UsageError
from ..files import atomic_write, explain_os_errors, shown
from .token_range import check_range
from .tokens import division_bytes, token_dtype, write_header

FORMATS = ("nanogpt", "llm.c")
# magic -> version, dtype
_HEADERS: dict[int, tuple[int, np.dtype[Any]]] = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}
_HEADER = 256 * 4  # bytes
_CHUNK = 1 << 22


def open_bin(path: str | os.PathLike[str], vocab_size: int | None) -> np.ndarray:
    """Memory-map a .bin, read-only: uint16 or uint32, shape (N,). Its first number distinguishes llm.c from nanoGPT.

    Raises UsageError if the file can't be read or vocab_size is not given, CheckpointError if it is cut short, and
    RangeError for an id outside the vocabulary.
    """
    path = Path(path)
    if vocab_size is None:
        there = (path.parent / "meta.pkl").exists()
        why = (
            "the meta.pkl next to it is a pickle, which could run anything, and is not read"
            if there
            else "the file doesn't tell it"
        )
        raise UsageError(f"the size of the vocabulary of {shown(path)} must be given with --vocab-size: {why}")
    with explain_os_errors("read", path), open(path, "rb") as file:
        header = np.frombuffer(file.read(_HEADER), "u1")
        size = os.fstat(file.fileno()).st_size
    begin, count, dtype = _layout(path, header, size)
    tokens = np.memmap(path, dtype, mode="r", offset=begin, shape=(count,))
    check_range(tokens, whole_number("token file", "vocab_size", vocab_size), f"the token file {shown(path)}")
    return tokens


def _layout(path: Path, header: np.ndarray, size: int) -> tuple[int, int, np.dtype[Any]]:
    """Where the tokens begin, how many there are, and their dtype."""
    numbers = header[: len(header) // 4 * 4].view("<i4")
    if len(numbers) == 256 and int(numbers[0]) in _HEADERS:
        version, dtype = _HEADERS[int(numbers[0])]
        if numbers[1] != version:
            raise CheckpointError(
                f"{shown(path)} is llm.c's in version {numbers[1]}, but only version {version} is known: write it again"
            )
        count = int(numbers[2])
        if count < 1 or size != _HEADER + count * dtype.itemsize:
            raise CheckpointError(
                f"{shown(path)} is damaged or cut short: its header says {count} tokens, which take "
                f"{_HEADER + count * dtype.itemsize} bytes, and it has {size}: copy it again"
            )
        return _HEADER, count, dtype
    if size == 0 or size % 2:
        raise CheckpointError(
            f"{shown(path)} is not a token file of nanoGPT or llm.c: it has {size} bytes, but an id takes 2"
        )
    return 0, size // 2, np.dtype("<u2")


def write_bin(path: str | os.PathLike[str], tokens: Any, format: str) -> None:
    """Write ids (N,) in the format of nanoGPT or llm.c, atomically. Raises RangeError for ids that do not fit."""
    tokens = check_tokens(tokens)
    if format not in FORMATS:
        raise UsageError(f"the format of a .bin must be one of {', '.join(FORMATS)}, not {format!r}")
    if len(tokens) == 0:
        raise UsageError(f"there are no tokens to write to {shown(path)}")
    wide = format == "llm.c" and any(
        int(tokens[begin : begin + _CHUNK].max()) >= 1 << 16 for begin in range(0, len(tokens), _CHUNK)
    )
    check_range(tokens, 1 << (31 if wide else 16), f"what is written to {shown(path)}")
    with explain_os_errors("write", path), atomic_write(path) as file:
        dtype = np.dtype("<u4" if wide else "<u2")
        if format == "llm.c":
            header = np.zeros(256, "<i4")
            header[:3] = (20240801, 7, len(tokens)) if wide else (20240520, 1, len(tokens))
            file.write(header.tobytes())
        for begin in range(0, len(tokens), _CHUNK):
            file.write(np.asarray(tokens[begin : begin + _CHUNK]).astype(dtype).tobytes())


def write_parts(
    path: str | os.PathLike[str],
    parts: Sequence[np.ndarray],
    vocab_size: int,
    validation_fraction: float,
    end_token: int | None = None,
) -> None:
    """Write arrays of ids (N,), for training and perhaps for validation, as a token file of tinygpt's, atomically."""
    dtype = token_dtype(vocab_size)
    with explain_os_errors("write", path), atomic_write(path) as file:
        write_header(file, sum(map(len, parts)), dtype)
        for tokens in parts:
            for begin in range(0, len(tokens), _CHUNK):
                file.write(np.asarray(tokens[begin : begin + _CHUNK]).astype(dtype).tobytes())
        if len(parts) > 1:
            file.write(division_bytes(validation_fraction, len(parts[0]), end_token))
        elif end_token is not None:
            file.write(division_bytes(0.0, 0, end_token))
