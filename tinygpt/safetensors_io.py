"""Read and write safetensors, the file format of weights and checkpoints.

    8 bytes      N, the length of the header (little-endian)
    N bytes      JSON: name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}; "__metadata__": text
    the rest     the arrays, one after the other, without gaps

Unlike pickle, such a file holds only numbers and text, and reading it runs no code. We trust a file only after
checking that its header describes it completely: every array lies inside the file, none overlap, no byte is left over.
So nothing is allocated for a size that a forged header merely claims.

Why not the package `safetensors`: version 0.8.0 was tried behind these classes, with their own tests. For NumPy it
refuses BF16 ("data type 'bfloat16' not understood"). If a file is truncated after it was opened, the process dies of
SIGBUS, which no `except` catches. It accepts a header with duplicate names, reads by copying whole arrays out of a map,
and builds the whole file in memory to write it. Other invalid headers it detects just as this reader does, and the
tests compare with it.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from . import backends
from .array_file import DTYPES, OTHER_BITS, PIECE, ArrayFile, ArrayInfo
from .errors import CheckpointError, UsageError

CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # as in the package safetensors: metadata can be long
_MAX_AXES = 32


class SafetensorsFile(ArrayFile):
    """An open safetensors file. Besides its arrays it has `metadata`: names to texts."""

    kind = "safetensors file"
    metadata: dict[str, str]

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise self._invalid(f"it has {size} bytes, but the header length alone takes 8")
        start = np.empty(8, np.uint8)
        self._fill(start)
        (length,) = struct.unpack("<Q", start.tobytes())
        if length > min(size - 8, _LONGEST_HEADER):
            raise self._invalid(
                f"its header should have {length} bytes, but the file has {size}: it is cut short or damaged"
            )
        text = np.empty(length, np.uint8)
        self._fill(text)
        try:
            header = json.loads(text.tobytes().decode("utf-8"), object_pairs_hook=unique_names)
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a duplicate name
            raise self._invalid(f"its header is damaged ({error})") from error
        if not isinstance(header, dict):
            raise self._invalid(f"its header must be a JSON object, not {type(header).__name__}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._invalid("its metadata must map names to strings")
        arrays = {name: self._array_info(name, entry, 8 + length) for name, entry in header.items()}
        self._check_layout(arrays, 8 + length, size)
        self.metadata, self.arrays = metadata, arrays

    def _array_info(self, name: str, entry: Any, origin: int) -> ArrayInfo:
        """Parse one entry of the header. origin: where the arrays begin in the file."""
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._invalid(f"{name!r} must have a dtype, a shape and data_offsets, and nothing else")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(code, str):
            raise self._invalid(f"{name!r} has the dtype {code!r}, which is not a string")
        bits = OTHER_BITS[code] if code in OTHER_BITS else 8 * np.dtype(DTYPES.get(code, "V0")).itemsize
        if not bits:  # it may be valid in a later version of the format
            raise CheckpointError(
                f"{self.path} holds {name!r} in the dtype {code!r}, which tinygpt does not support; it supports "
                f"{', '.join([*DTYPES, *OTHER_BITS])}"
            )
        if not _are_counts(shape) or len(shape) > _MAX_AXES or math.prod(n or 1 for n in shape) >= 1 << 56:
            raise self._invalid(f"{name!r} has a shape that is not a list of sizes")
        if not _are_counts(offsets) or len(offsets) != 2:
            raise self._invalid(f"{name!r} has data_offsets that are not a pair of positions")
        begin, end = offsets
        if 8 * (end - begin) != math.prod(shape) * bits:
            raise self._invalid(
                f"{name!r} of dtype {code} and shape {tuple(shape)} does not fit the bytes {begin} to {end}"
            )
        return ArrayInfo(code, tuple(shape), origin + begin, origin + end)

    def _check_layout(self, arrays: Mapping[str, ArrayInfo], origin: int, size: int) -> None:
        """Check that the arrays fill the file from the header to its end without gaps or overlaps."""
        position, before = origin, "the header"
        for name, info in sorted(arrays.items(), key=lambda item: (item[1].begin, item[1].end)):
            if info.begin != position:
                what = "overlaps" if info.begin < position else "leaves a gap after"
                raise self._invalid(f"{name!r} {what} {before}")
            position, before = info.end, repr(name)
        if position != size:
            raise self._invalid(f"it has {size} bytes, but its header describes {position}")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook for `json.loads` that raises ValueError for a duplicate name."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} occurs twice")
        found[name] = value
    return found


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


# Writing ----------------------------------------------------------------------------------------------


def write_safetensors(
    file: IO[bytes], arrays: Mapping[str, Any], metadata: Mapping[str, str], dtype: str | None = None
) -> str:
    """Write arrays of either backend to a safetensors file. Returns the SHA-256 of what was written.

    dtype: convert all arrays to "float64", "float32", "float16" or "bfloat16", piece by piece, rounding to nearest;
    None: leave each in its own dtype. Raises UsageError for a dtype that the format does not have and for numbers
    out of the range of `dtype`, OSError if `file.write` does (disk full).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, array in arrays.items():
        code = CODES.get(dtype or array.dtype.name)
        if code is None or array.dtype.byteorder == ">":
            raise UsageError(
                f"a safetensors file can't hold {name} of dtype {array.dtype}: convert it to one of {', '.join(CODES)}"
            )
        end = position + array.size * np.dtype(DTYPES[code]).itemsize
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)  # align the arrays to eight bytes
    digest = hashlib.sha256()

    def write(piece: Any) -> None:
        digest.update(piece)
        file.write(piece)

    write(struct.pack("<Q", len(text)) + text)
    for name, array in arrays.items():
        flat = np.ascontiguousarray(backends.move(array, "numpy")).reshape(-1)
        for start in range(0, flat.size, PIECE):
            write(_encoded(name, flat[start : start + PIECE], header[name]["dtype"]).view(np.uint8).data)
    return digest.hexdigest()


def _encoded(name: str, piece: np.ndarray, code: str) -> np.ndarray:
    """Convert numbers to their stored form."""
    if code == "BF16":
        return _to_bfloat16(name, piece)
    try:
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            return piece.astype(DTYPES[code], copy=False)
    except FloatingPointError:
        raise _too_large(name, {"F16": "float16", "F32": "float32"}[code]) from None


def _to_bfloat16(name: str, piece: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, rounded to nearest, ties to even."""
    bits = _encoded(name, piece, "F32").view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = np.isnan(piece)
    rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x40)  # rounding could turn a NaN into an infinity
    if np.any((rounded & np.uint32(0x7FFF) == 0x7F80) & np.isfinite(piece)):
        raise _too_large(name, "bfloat16")
    return rounded.astype("<u2")


def _too_large(name: str, dtype: str) -> UsageError:
    return UsageError(f"{name} holds numbers too large for {dtype}: save it in a wider dtype, such as float32")
