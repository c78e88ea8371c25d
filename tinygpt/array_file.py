"""A file of arrays that is read in pieces: what the formats of weights share.

A subclass parses the file's header into `arrays`: the position, dtype and shape of each array. The numbers are read
here, straight into an existing array or in pieces, so that each weight is in memory only once.

A memory map looks cheaper but measures slower: its 4 KB pages make every later pass over the weights 20 % slower than
ordinary memory (42 instead of 35 ms for the 498 MB of GPT-2), so the 0.16 s saved in loading are lost within a few
dozen tokens. Copying out of a map takes twice the memory, and truncating a mapped file kills the process by a signal.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from .errors import CheckpointError, ShapeError

# The names of safetensors for dtypes, and how we read the stored numbers. BF16 is the upper half of a float32.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "u1", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
# Other dtypes of the format, with their bits per number. A file may contain them, but reading such an array raises an
# error that names the dtype.
OTHER_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "C64": 64,
}  # fmt: skip
PIECE = 1 << 16  # numbers converted at a time: few enough to stay in the CPU cache


@dataclass(frozen=True)
class ArrayInfo:
    """One array: the format's name for its dtype, its shape, and where it begins and ends in the file, in bytes."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


class ArrayFile(ABC):
    """An open file: `arrays` (name -> ArrayInfo), `read_into`, `pieces` and `read`. Use it in a `with` block.

    Raises CheckpointError if the file can't be read or does not match its header.
    """

    kind: ClassVar[str]  # what an error message calls a valid file
    arrays: dict[str, ArrayInfo]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  closed by __exit__
        except FileNotFoundError:
            raise CheckpointError(f"there is no file {self.path}") from None
        except (OSError, ValueError) as error:  # ValueError: an invalid file name
            raise CheckpointError(f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    @abstractmethod
    def _read_header(self) -> None:
        """Set `arrays`, after checking that the file holds them all."""

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
        buffer = np.empty(min(PIECE, size), DTYPES[info.code])
        for start in range(0, size, PIECE):
            stored = buffer[: size - start]
            self._fill(stored)
            out = destination(start, stored.size)
            try:
                with np.errstate(over="raise", invalid="ignore"):  # a NaN stays a NaN
                    decode(stored, info.code, out)
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
        return CheckpointError(f"{self.path} is not a valid {self.kind}: {what}; restore it, or download it again")


def decode(stored: np.ndarray, code: str, out: np.ndarray) -> None:
    """Convert stored numbers into `out`."""
    if code == "BF16" and out.dtype == np.float32:
        np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
    elif code == "BF16":
        out[...] = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        out[...] = stored != 0 if code == "BOOL" else stored
