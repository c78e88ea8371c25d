"""Read and write safetensors, the file format of weights and checkpoints.

    8 bytes      N, the length of the header (little-endian)
    N bytes      JSON: name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}; "__metadata__": text
    the rest     the arrays, one after the other, without gaps

Unlike pickle, such a file holds only numbers and text, and reading it runs no code. We trust a file only after
checking that its header describes it completely: every array lies inside the file, none overlap, no byte is left over.
So nothing is allocated for a size that a forged header merely claims.

`read_into(name, array)` reads the bytes straight into an existing array, so each weight is in memory only once. A
memory map looks cheaper but measures slower: its 4 KB pages make every later pass over the weights 20 % slower than
ordinary memory (42 instead of 35 ms for the 498 MB of GPT-2), so the 0.16 s saved in loading are lost within a few
dozen tokens. Copying out of a map takes twice the memory, and truncating a mapped file kills the process by a signal.

Why not the package `safetensors`: version 0.8.0 was tried behind these classes, with their own tests. For NumPy it
refuses BF16 ("data type 'bfloat16' not understood"). If a file is truncated after it was opened, the process dies of
SIGBUS, which no `except` catches. It accepts a header with duplicate names, reads by copying whole arrays out of a map,
and builds the whole file in memory to write it. Other invalid headers it detects just as this reader does, and the
tests compare with it.

Format: https://huggingface.co/docs/safetensors

Over 300 lines: reading and writing share the table of types and what makes a header valid.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from . import backends
from .errors import CheckpointError, ShapeError, UsageError

# The format's dtype names and how we read the stored numbers. BF16 is the upper half of a float32.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "u1", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
# Other dtypes of the format, with their bits per number. A file may contain them, but reading such an array raises an
# error that names the dtype.
OTHER_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "C64": 64,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # as in the package safetensors: metadata can be long
_MAX_AXES = 32
_PIECE = 1 << 16  # numbers converted at a time: few enough to stay in the CPU cache


@dataclass(frozen=True)
class ArrayInfo:
    """One array: the format's name of its dtype, its shape, and its begin and end in the file, in bytes."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open file: `metadata`, `arrays` (name -> ArrayInfo), `read_into` and `read`. Use it in a `with` block.

    Raises CheckpointError if the file can't be read or does not match its header.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  closed by __exit__
        except FileNotFoundError:
            raise CheckpointError(f"there is no file {self.path}") from None
        except (OSError, ValueError) as error:  # ValueError: an invalid file name
            raise CheckpointError(f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            self.metadata, self.arrays = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Read an array into `out`, which must be contiguous and of the same shape, converting to its dtype."""
        info = self._readable(name)
        if out.shape != info.shape or not out.flags.c_contiguous:
            raise ShapeError(f"read_into: {name!r} needs a contiguous array of shape {info.shape}, not {out.shape}")
        flat = out.reshape(-1)
        if info.code not in ("BF16", "BOOL") and np.dtype(DTYPES[info.code]) == out.dtype:
            self._seek(info.begin)
            self._fill(flat)
        else:
            for _ in self._convert(name, lambda start, size: flat[start : start + size]):
                pass

    def pieces(self, name: str, dtype: Any) -> Iterator[tuple[int, np.ndarray]]:
        """Yield an array piece by piece, converted to `dtype`, as `(start, numbers)`."""
        return self._convert(name, lambda start, size: np.empty(size, dtype))

    def _convert(self, name: str, destination: Callable[[int, int], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Read piece by piece into `destination(start, size)`, an array of the wanted dtype."""
        info = self._readable(name)
        self._seek(info.begin)
        size = math.prod(info.shape)
        buffer = np.empty(min(_PIECE, size), DTYPES[info.code])
        for start in range(0, size, _PIECE):
            stored = buffer[: size - start]
            self._fill(stored)
            out = destination(start, stored.size)
            try:
                with np.errstate(over="raise", invalid="ignore"):  # a NaN stays a NaN
                    _decode(stored, info.code, out)
            except FloatingPointError:
                raise self._invalid(f"{name!r} holds numbers beyond the range of {out.dtype}") from None
            yield start, out

    def read(self, name: str) -> np.ndarray:
        """Return an array in its stored dtype; BF16 as float32."""
        info = self._readable(name)
        dtype = {"BF16": "f4", "BOOL": "?"}.get(info.code, DTYPES[info.code])
        out = np.empty(info.shape, np.dtype(dtype).newbyteorder("="))
        self.read_into(name, out)
        return out

    def _readable(self, name: str) -> ArrayInfo:
        info = self.arrays[name]
        if info.code in OTHER_BITS:
            raise CheckpointError(
                f"{self.path} holds {name!r} as {info.code}, a {OTHER_BITS[info.code]}-bit dtype that tinygpt can't "
                "read: use a version of the model in F32, F16 or BF16, or convert it to one of these"
            )
        return info

    def _seek(self, position: int) -> None:
        try:
            self._file.seek(position)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _fill(self, array: np.ndarray) -> None:
        """Fill a contiguous one-dimensional array with the next bytes of the file."""
        view, done = array.view(np.uint8).data, 0
        while done < len(view):
            try:
                count = self._file.readinto(view[done:])
            except OSError as error:
                raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error
            if not count:
                raise self._invalid("it was truncated while it was being read")
            done += count

    def _invalid(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a valid safetensors file: {what}; restore it, or download it again")

    # The header ---------------------------------------------------------------------------------------

    def _read_header(self) -> tuple[dict[str, str], dict[str, ArrayInfo]]:
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
        return metadata, arrays

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


def _decode(stored: np.ndarray, code: str, out: np.ndarray) -> None:
    """Convert stored numbers into `out`."""
    if code == "BF16" and out.dtype == np.float32:
        np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
    elif code == "BF16":
        out[...] = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        out[...] = stored != 0 if code == "BOOL" else stored


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
        for start in range(0, flat.size, _PIECE):
            write(_encoded(name, flat[start : start + _PIECE], header[name]["dtype"]).view(np.uint8).data)
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
