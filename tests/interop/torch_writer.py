"""Files as `torch.save` writes them, opcode by opcode: tests need no PyTorch for them, and can forge others."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

STORAGE = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage", "u1": "ByteStorage"}
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(10, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, item: str) -> bytes:
    return b"c" + module.encode() + b"\n" + item.encode() + b"\n"


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


EMPTY = name("collections", "OrderedDict") + b")R"


def storage(key: str, kind: str, size: int, legacy: bool = False) -> bytes:
    parts = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(size) + (b"N" if legacy else b"")
    return b"(" + parts + b"tQ"


def tensor(stored: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    parts = stored + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + EMPTY
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + parts + b"tR"


def dictionary(values: Mapping[str, bytes]) -> bytes:
    return EMPTY + b"(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def state_dict(arrays: Mapping[str, np.ndarray], legacy: bool = False) -> bytes:
    """The pickle of a dictionary of tensors, each with a storage of its own, whose key is its number."""
    return pickled(
        dictionary(
            {
                label: tensor(
                    storage(str(key), STORAGE[array.dtype.str[1:]], array.size, legacy), 0, array.shape,
                    tuple(stride // array.itemsize for stride in array.strides),
                )
                for key, (label, array) in enumerate(arrays.items())
            }
        )
    )  # fmt: skip


def zipped(pickle: bytes, stored: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with this pickle and these storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", b"little")
        for key, content in stored.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def legacy(pickle: bytes, stored: Mapping[str, tuple[int, bytes]]) -> bytes:
    """The format before PyTorch 1.6. stored: the number of elements of each storage, and its bytes."""
    facts = pickled(b"}(" + text("little_endian") + b"\x88u")
    keys = pickled(b"](" + b"".join(map(text, stored)) + b"e")
    content = b"".join(struct.pack("<q", count) + data for count, data in stored.values())
    return MAGIC + pickled(b"M\xe9\x03") + facts + pickle + keys + content


def write(path: Path, arrays: Mapping[str, np.ndarray], old: bool = False) -> None:
    """Save arrays as `torch.save` saves a state_dict."""
    pickle = state_dict(arrays, old)
    values = enumerate(arrays.values())
    if old:
        path.write_bytes(legacy(pickle, {str(key): (array.size, array.tobytes()) for key, array in values}))
    else:
        path.write_bytes(zipped(pickle, {str(key): array.tobytes() for key, array in values}))
