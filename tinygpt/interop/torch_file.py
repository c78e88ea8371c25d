"""Read the tensors in a file of `torch.save`, such as pytorch_model.bin, without PyTorch and without executing code.

A zip archive since PyTorch 1.6: `NAME/data.pkl` is a pickle that describes the tensors (torch_pickle.py), and
`NAME/data/KEY` are the stored numbers, uncompressed. Before, four pickles (a magic number, the format's version, the
machine's facts, the tensors), a fifth that lists the keys, and for each key eight bytes with its size and its numbers.

    with TorchFile(folder / "pytorch_model.bin") as file:     # as a SafetensorsFile: arrays, read_into, pieces, read
        array = file.read("wte.weight")

Before anything is allocated, every tensor is checked to lie within the file. A tensor may be any view of its storage
(transposed, a slice, shared with others). A contiguous one is read straight into the model, any other through a buffer
for the part of the storage that it spans.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array_file import DTYPES, ArrayFile, ArrayInfo, decode
from .torch_pickle import LONGEST, unpickle
from .torch_tensors import Refused, Storage, Tensor

_ZIP, _LFS = b"PK\x03\x04", b"version https://git-lfs"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<26sHH")  # of an entry of a zip archive; then the name, the extra field and the content
_MOST_SHARING = 16  # how often the tensors of a file may use its bytes: tied matrices use them twice

Locate = Callable[[Storage], int]


@dataclass(frozen=True)
class TensorInfo(ArrayInfo):
    """A tensor that is not contiguous: begin and end delimit what it spans, strides are in elements."""

    strides: tuple[int, ...]


class TorchFile(ArrayFile):
    """An open file of `torch.save` that holds a dictionary of tensors. Raises CheckpointError for any other."""

    kind = "PyTorch file"

    def _read_header(self) -> None:
        try:
            value, locate = self._content()
            self.arrays = {name: self._placed(tensor, locate) for name, tensor in self._tensors(value).items()}
        except Refused as error:
            raise self._invalid(str(error)) from error
        held = os.fstat(self._file.fileno()).st_size
        used = sum(math.prod(info.shape) * np.dtype(DTYPES[info.code]).itemsize for info in self.arrays.values())
        if used > _MOST_SHARING * held:
            raise self._invalid(f"its tensors have {used} bytes, but the file only {held}")

    def _tensors(self, value: Any) -> dict[str, Tensor]:
        """The tensors to offer, from the value of the pickle. Raises Refused."""
        return tensors_in(value)

    def _content(self) -> tuple[Any, Locate]:
        """The value of the pickle, and a function that returns where a storage begins in the file."""
        size = os.fstat(self._file.fileno()).st_size
        begin = self._bytes(0, min(size, 32))
        if begin.startswith(_ZIP):
            return self._zip(size)
        if begin.startswith(b"\x80") and _MAGIC.to_bytes(10, "little") in begin:
            return self._legacy(size)
        if begin.startswith(_LFS):
            raise Refused(
                "it is a pointer of Git LFS, a text that stands for the file: fetch the file with git lfs pull"
            )
        raise Refused(f"it begins with {begin[:8]!r}, not as torch.save writes")

    def _bytes(self, begin: int, size: int) -> bytes:
        self._seek(begin)
        found = np.empty(size, np.uint8)
        self._fill(found)
        return found.tobytes()

    # The zip archive ------------------------------------------------------------------------------------

    def _zip(self, size: int) -> tuple[Any, Locate]:
        entries = self._entries()
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused(f"it has {len(roots)} entries data.pkl instead of one")
        root = roots[0]

        def content(name: str) -> tuple[int, int]:
            """Where the content of an entry begins, and its size."""
            entry = entries.get(f"{root}/{name}")
            if entry is None:
                raise Refused(f"it lacks {name[:60]!r}: it is cut short or damaged")
            return self._of_entry(entry, size), entry.file_size

        begin, length = content("data.pkl")
        if length > LONGEST:
            raise Refused(f"its pickle has {length} bytes, more than the {LONGEST} that any model needs")
        if f"{root}/byteorder" in entries:
            place, length_of_name = content("byteorder")
            if self._bytes(place, min(length_of_name, 6)) != b"little":
                raise Refused("its numbers are not little-endian: save it again on another machine")

        def locate(storage: Storage) -> int:
            place, stored = content(f"data/{storage.key}")
            expected = storage.size * np.dtype(DTYPES[storage.code]).itemsize
            if stored != expected:
                raise Refused(f"storage {storage.key[:60]!r} has {stored} bytes, but its pickle says {expected}")
            return place

        return unpickle(self._bytes(begin, length))[0], locate

    def _entries(self) -> dict[str, zipfile.ZipInfo]:
        self._seek(0)
        try:
            with zipfile.ZipFile(self._file) as archive:
                infos = archive.infolist()
        except Exception as error:  # of a damaged directory: BadZipFile, struct.error, UnicodeError, MemoryError ...
            raise Refused(f"its directory is damaged or cut short ({str(error)[:100]})") from error
        entries = {info.filename: info for info in infos}
        if len(entries) != len(infos):
            raise Refused("it has two entries of one name")
        return entries

    def _of_entry(self, entry: zipfile.ZipInfo, size: int) -> int:
        """Where the content of an entry begins. Raises Refused unless it is stored plainly within the file."""
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise Refused(f"its entry {entry.filename[:60]!r} is compressed or encrypted, which torch.save never does")
        header = entry.header_offset
        if not 0 <= header <= size - _LOCAL_HEADER.size:
            raise Refused(f"its entry {entry.filename[:60]!r} lies outside the file: it is cut short or damaged")
        start, name, extra = _LOCAL_HEADER.unpack(self._bytes(header, _LOCAL_HEADER.size))
        begin: int = header + _LOCAL_HEADER.size + name + extra
        if not start.startswith(_ZIP) or begin + entry.file_size > size:
            raise Refused(f"its entry {entry.filename[:60]!r} reaches beyond the file: it is cut short or damaged")
        return begin

    # The older format -----------------------------------------------------------------------------------

    def _legacy(self, size: int) -> tuple[Any, Locate]:
        content = self._bytes(0, min(size, LONGEST))
        values, position = [], 0
        for _ in range(5):
            value, position = unpickle(content, position)
            values.append(value)
        magic, version, facts, value, keys = values
        if magic != _MAGIC or version != _VERSION or type(facts) is not dict or type(keys) is not list:
            raise Refused(f"it is not of version {_VERSION} of its format")
        if facts.get("little_endian") is not True:
            raise Refused("its numbers are not little-endian: save it again on another machine")
        storages = dict[str, Storage]()
        for tensor in tensors_in(value, whole=False).values():
            if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
                raise Refused(f"storage {tensor.storage.key[:60]!r} has two sizes or types")
        places = self._legacy_places(storages, keys, position, size)
        return value, lambda storage: places[storage.key]

    def _legacy_places(self, storages: dict[str, Storage], keys: list[Any], position: int, size: int) -> dict[str, int]:
        """Where each storage begins; they follow one another in the order of `keys`, each after its size."""
        places: dict[str, int] = {}
        for key in keys:
            storage = storages.get(key) if type(key) is str else None
            if storage is None or key in places:
                raise Refused("its list of storages does not match its tensors")
            if position + 8 > size:
                raise Refused(f"it ends before storage {key[:60]!r}: it is cut short")
            (count,) = struct.unpack("<q", self._bytes(position, 8))
            if count != storage.size:
                raise Refused(f"storage {key[:60]!r} has {count} numbers, but its pickle says {storage.size}")
            places[key] = position + 8
            position += 8 + count * np.dtype(DTYPES[storage.code]).itemsize
        if missing := storages.keys() - places.keys():
            raise Refused(f"it lacks storage {min(missing)[:60]!r}: it is cut short or damaged")
        if position > size:
            raise Refused(f"it has {size} bytes, but its storages end at {position}: it is cut short")
        return places

    # Tensors --------------------------------------------------------------------------------------------

    def _placed(self, tensor: Tensor, locate: Locate) -> ArrayInfo:
        storage = tensor.storage
        width = np.dtype(DTYPES[storage.code]).itemsize
        begin = locate(storage) + tensor.offset * width
        if tensor.contiguous:
            return ArrayInfo(storage.code, tensor.shape, begin, begin + tensor.size * width)
        span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        return TensorInfo(storage.code, tensor.shape, begin, begin + span * width, tensor.strides)

    def read_into(self, name: str, out: np.ndarray) -> None:
        info = self.arrays[name]
        if isinstance(info, TensorInfo) and out.shape == info.shape:
            self._decoded(name, self._in_order(info), out)
        else:
            super().read_into(name, out)

    def pieces(self, name: str, dtype: Any) -> Iterator[tuple[int, np.ndarray]]:
        info = self.arrays[name]
        if not isinstance(info, TensorInfo):
            yield from super().pieces(name, dtype)
            return
        out = np.empty(info.shape, dtype)
        self._decoded(name, self._in_order(info), out)
        yield 0, out.reshape(-1)

    def _in_order(self, info: TensorInfo) -> np.ndarray:
        """A view of what was read, with the tensor's own strides."""
        dtype = np.dtype(DTYPES[info.code])
        span = np.empty((info.end - info.begin) // dtype.itemsize, dtype)
        self._seek(info.begin)
        self._fill(span)
        return np.lib.stride_tricks.as_strided(
            span, info.shape, [stride * dtype.itemsize for stride in info.strides], writeable=False
        )

    def _decoded(self, name: str, stored: np.ndarray, out: np.ndarray) -> None:
        try:
            with np.errstate(over="raise", invalid="ignore"):
                decode(stored, self.arrays[name].code, out)
        except FloatingPointError:
            raise self._invalid(f"{name!r} holds numbers beyond the range of {out.dtype}") from None


def tensors_in(value: Any, whole: bool = True) -> dict[str, Tensor]:
    """The tensors of a state_dict. whole: raise Refused for anything else in it."""
    if type(value) is not dict:
        raise Refused(f"it holds a {type(value).__name__}, not a dictionary of tensors")
    found = {name: tensor for name, tensor in value.items() if type(name) is str and type(tensor) is Tensor}
    for name, other in value.items() if whole else ():
        if name not in found:
            what = "a dictionary" if type(other) is dict else f"of type {type(other).__name__}"
            raise Refused(f"it holds {str(name)[:60]!r}, which is {what}, not a tensor: it is not a model's state_dict")
    return found
