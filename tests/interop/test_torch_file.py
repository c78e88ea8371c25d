"""pytorch_model.bin: read without PyTorch and without executing anything, or refused with a sentence."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.interop import torch_writer as writer
from tests.interop.helpers import WEIGHTS, assert_same_model, change_json, make, saved
from tests.interop.test_fuzz import edited, edits
from tests.interop.torch_writer import EMPTY, dictionary, name, pickled, storage, tensor, text, zipped
from tinygpt import GPT
from tinygpt.errors import CheckpointError
from tinygpt.interop.torch_file import TorchFile

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
NUMBERS = np.arange(12, dtype="<f4")


def old_folder(folder: Path, old: bool = False) -> Path:
    """A GPT-2 directory with pytorch_model.bin alone, causal masks included, as older folders have it."""
    saved(folder)
    arrays = load_file(folder / WEIGHTS)
    for layer in range(2):
        arrays[f"transformer.h.{layer}.attn.bias"] = np.tril(np.ones((8, 8), "u1"))[None, None]
        arrays[f"transformer.h.{layer}.attn.masked_bias"] = np.array(-1e4, "f4")
    writer.write(folder / BIN, arrays, old)
    (folder / WEIGHTS).unlink()
    return folder


def read(path: Path, content: bytes) -> dict[str, np.ndarray]:
    path.write_bytes(content)
    with TorchFile(path) as file:
        return {label: file.read(label) for label in file.arrays}


# Files that are read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_with_pytorch_model_bin_alone_is_a_model(tmp_path: Path, old: bool) -> None:
    assert_same_model(GPT.from_pretrained(old_folder(tmp_path, old)), make())


def test_safetensors_come_first(tmp_path: Path) -> None:
    old_folder(tmp_path)
    saved(tmp_path, make(seed=1))
    assert_same_model(GPT.from_pretrained(tmp_path), make(seed=1))


def test_shards_and_what_contradicts_their_index(tmp_path: Path) -> None:
    saved(tmp_path)
    arrays = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    names = sorted(arrays)
    places = {}
    for number, part in enumerate((names[:9], names[9:18], names[18:]), 1):
        file = f"pytorch_model-{number:05d}-of-00004.bin"
        writer.write(tmp_path / file, {label: arrays[label] for label in part})
        places |= dict.fromkeys(part, file)
    (tmp_path / BIN_INDEX).write_text("{}")
    change_json(tmp_path / BIN_INDEX, weight_map=places)
    assert_same_model(GPT.from_pretrained(tmp_path), make())
    change_json(tmp_path / BIN_INDEX, weight_map=places | {names[0]: "../x.bin"})
    with pytest.raises(CheckpointError, match=r"must be in a \.bin file of the same folder, not '../x.bin'"):
        GPT.from_pretrained(tmp_path)
    change_json(tmp_path / BIN_INDEX, weight_map=places | {"more": file})
    with pytest.raises(CheckpointError, match=f"{BIN_INDEX} says that {file} contains 'more', but it does not"):
        GPT.from_pretrained(tmp_path)


def test_views_of_one_storage(tmp_path: Path) -> None:
    stored = storage("0", "FloatStorage", 12)
    views = {
        "whole": tensor(stored, 0, (3, 4), (4, 1)), "transposed": tensor(stored, 0, (4, 3), (1, 4)),
        "row": tensor(stored, 4, (4,), (1,)), "column": tensor(stored, 2, (3,), (4,)),
        "part": tensor(stored, 1, (2, 2), (4, 2)), "one": tensor(stored, 11, (), ()),
        "none": tensor(stored, 0, (0, 5), (5, 1)),
        "single": tensor(stored, 5, (1, 3), (99, 1)),
    }  # fmt: skip
    found = read(tmp_path / BIN, zipped(pickled(dictionary(views)), {"0": NUMBERS.tobytes()}))
    whole = NUMBERS.reshape(3, 4)
    expected = {
        "whole": whole, "transposed": whole.T, "row": whole[1], "column": whole[:, 2], "part": whole[:2, 1::2],
        "one": whole[2, 3], "none": np.empty((0, 5)), "single": whole[1:2, 1:4],
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for label, array in expected.items():
        assert found[label].shape == array.shape
        np.testing.assert_array_equal(found[label], array, label)


def test_pieces_of_a_transposed_tensor(tmp_path: Path) -> None:
    view = tensor(storage("0", "FloatStorage", 12), 0, (4, 3), (1, 4))
    (tmp_path / BIN).write_bytes(zipped(pickled(dictionary({"a": view})), {"0": NUMBERS.tobytes()}))
    with TorchFile(tmp_path / BIN) as file:
        ((start, piece),) = file.pieces("a", np.float64)
    assert start == 0
    np.testing.assert_array_equal(piece, NUMBERS.reshape(3, 4).T.ravel())


# What is refused --------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch it-ran",)


def evil(protocol: int) -> bytes:
    return pickle.dumps({"wte.weight": Evil()}, protocol)


def one(stored: bytes, shape: tuple[int, ...] = (12,), strides: tuple[int, ...] = (1,), offset: int = 0) -> bytes:
    return pickled(dictionary({"a": tensor(stored, offset, shape, strides)}))


FLOATS = storage("0", "FloatStorage", 12)
MANY = storage("0", "FloatStorage", 1 << 18)
DATA = {"0": NUMBERS.tobytes()}
REFUSED = {
    "os.system": (zipped(evil(2), {}), r"names posix\.system, and only tensors, dictionaries and plain values"),
    "os.system, protocol 4": (zipped(evil(4), {}), r"names posix\.system"),
    "os.system, protocol 0": (zipped(evil(0), {}), r"names posix\.system"),
    "os.system, old": (writer.legacy(evil(2), {}), r"names posix\.system"),
    "eval": (zipped(pickled(name("builtins", "eval") + text("1")), {}), r"names builtins\.eval"),
    "a module's part": (
        zipped(pickled(name("torch", "FloatStorage.__init__")), {}),
        r"names torch\.FloatStorage\.__init__",
    ),
    "a class": (zipped(pickled(b"(" + text("x") + b"ios\nsystem\n"), {}), "has the instruction INST"),
    "an object": (zipped(pickled(b"(ctorch\nFloatStorage\no"), {}), "has the instruction OBJ"),
    "NEWOBJ": (zipped(pickled(name("torch", "FloatStorage") + b")\x81"), {}), "has the instruction NEWOBJ"),
    "an extension": (zipped(pickled(b"\x82\x01"), {}), "has the instruction EXT1"),
    "a storage called": (zipped(pickled(name("torch", "FloatStorage") + b")R"), {}), r"calls torch\.FloatStorage"),
    "text called": (zipped(pickled(text("os.system") + b")R"), {}), "calls a value of type str"),
    "attributes": (zipped(pickled(text("x") + b"}b"), {}), "sets attributes of a value of type str"),
    "complex numbers": (
        zipped(one(storage("0", "ComplexFloatStorage", 12)), DATA),
        r"names torch\.ComplexFloatStorage",
    ),
    "a storage longer than its entry": (
        zipped(one(storage("0", "FloatStorage", 1 << 40), (1 << 40,)), DATA),
        "'0' has 48 bytes, but its pickle says 4398",
    ),
    "an entry longer than the file": (
        zipped(one(storage("0", "FloatStorage", 1 << 28), (1 << 28,)), DATA).replace(
            struct.pack("<II", 48, 48), struct.pack("<II", 1 << 30, 1 << 30)
        ),
        "entry 'archive/data/0' reaches beyond the file",
    ),
    "a storage longer than the file": (
        writer.legacy(one(storage("0", "FloatStorage", 1 << 40, True), (1 << 40,)), {"0": (1 << 40, b"1234")}),
        r"has \d+ bytes, but its storages end at \d+: it is cut short",
    ),
    "a storage that is not there": (zipped(one(FLOATS), {}), "lacks 'data/0': it is cut short or damaged"),
    "a storage that is not there, old": (writer.legacy(one(FLOATS), {}), "lacks storage '0'"),
    "a storage of another size, old": (
        writer.legacy(one(FLOATS), {"0": (11, b"")}),
        "has 11 numbers, but its pickle says 12",
    ),
    "a storage nobody named, old": (writer.legacy(one(FLOATS), {"1": (12, b"")}), "does not match its tensors"),
    "beyond the storage": (zipped(one(FLOATS, offset=1), DATA), r"shape \(12,\) that reaches beyond its 12 stored"),
    "strides beyond the storage": (zipped(one(FLOATS, (2, 2), (11, 1)), DATA), "reaches beyond its 12 stored"),
    "numbers repeated": (zipped(one(FLOATS, (1 << 30,), (0,)), DATA), r"that repeats its 12 stored numbers"),
    "an impossible shape": (zipped(one(FLOATS, (1 << 30, 1 << 30), (0, 0)), DATA), "impossible shape"),
    "negative strides": (
        zipped(one(FLOATS, (3,), (-1,), 11), DATA),
        "a shape, strides or an offset that are not counts",
    ),
    "many uses of one storage": (
        zipped(pickled(dictionary(dict.fromkeys(map(str, range(20)), tensor(MANY, 0, (1 << 18,), (1,))))),
            {"0": bytes(1 << 20)}),
        "its tensors have 20971520 bytes, but the file only",
    ),
    "a cycle": (
        zipped(pickled(b"}q\x00" + text("a") + b"h\x00s"), {}),
        "holds 'a', which is a dictionary, not a tensor",
    ),
    "a list in itself": (zipped(pickled(b"]q\x00h\x00a"), {}), "holds a list, not a dictionary of tensors"),
    "a number of 5000 digits as a key": (
        zipped(pickled(b"}" + pickle.dumps(10**5000, 2)[2:-1] + b"Ns"), {}), "a number of 16610 bits"
    ),
    "a dictionary as a key": (zipped(pickled(b"}q\x00h\x00h\x00s"), {}), "whose key is a value of type dict"),
    "no value with that number": (zipped(pickled(b"h\x07"), {}), "refers to value 7, which it has not made"),
    "an empty stack": (zipped(pickled(b"\x85"), {}), "TUPLE1 at byte 2 finds nothing to work on"),
    "two values": (zipped(pickled(b"NN"), {}), "does not end in one value"),
    "an optimizer": (
        zipped(pickled(dictionary({"lr": b"K\x01"})), {}),
        "holds 'lr', which is of type int, not a tensor",
    ),
    "compressed": (
        zipped(one(FLOATS), DATA, zipfile.ZIP_DEFLATED),
        "is compressed or encrypted, which torch.save never",
    ),
    "a bomb": (zipped(one(FLOATS), {"0": bytes(10**7)}, zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    "a long pickle": (zipped(b"N" * (1 << 24) + b"..", {}), "has 16777218 bytes, more than"),
    "many instructions": (zipped(b"]" * 250_001, {}), "more than 250000 instructions"),
    "no pickle": (b"PK\x05\x06" + bytes(18), "begins with b'PK"),
    "an archive of something else": (
        zipped(b"N.", {}).replace(b"data.pkl", b"data.txt"),
        "has 0 entries data.pkl instead",
    ),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "a pickle alone": (pickle.dumps({}, 2), r"begins with b'\\x80\\x02.*not as torch.save writes"),
    "nothing": (b"", "begins with b''"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_nothing_is_run(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=rf"{BIN} is not a valid PyTorch file: .*{words}"):
        read(tmp_path / BIN, content)
    assert not (tmp_path / "it-ran").exists()


def test_the_forged_pickles_would_run() -> None:
    """Or the tests above would only see damage."""
    assert [b"system" in evil(protocol) for protocol in (0, 2, 4)] == [True] * 3


@pytest.mark.parametrize("old", [False, True])
def test_a_file_cut_off_anywhere(tmp_path: Path, old: bool) -> None:
    writer.write(tmp_path / BIN, {"a": NUMBERS, "b": NUMBERS.reshape(3, 4)}, old)
    content = (tmp_path / BIN).read_bytes()
    for end in range(0, len(content), 7):
        with pytest.raises(CheckpointError, match=f"{BIN} is not a valid PyTorch file"):
            read(tmp_path / BIN, content[:end])


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    view = tensor(FLOATS, 0, (4, 3), (1, 4))
    (tmp_path / BIN).write_bytes(zipped(pickled(dictionary({"a": view})), DATA))
    with TorchFile(tmp_path / BIN) as file:
        os.truncate(tmp_path / BIN, 200)
        with pytest.raises(CheckpointError, match="truncated while it was being read"):
            file.read("a")


def test_weights_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    arrays = load_file(saved(tmp_path) / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    writer.write(tmp_path / BIN, arrays | {"transformer.wte.weight": np.zeros((11, 12), "i8")})
    with pytest.raises(CheckpointError, match=r"have 'wte.weight' as I64, but tinygpt loads only F32"):
        GPT.from_pretrained(tmp_path)


# Fuzzing ----------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(changes=edits, old=st.booleans())
def test_bytes_changed_anywhere(tmp_path_factory: pytest.TempPathFactory, changes: list[Any], old: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    writer.write(path, {"a": NUMBERS, "b": NUMBERS.reshape(3, 4).T.copy()}, old)
    content = path.read_bytes()
    try:
        read(path, edited(content, changes, len(content)))
    except CheckpointError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message


opcodes = st.lists(
    st.sampled_from([bytes([code]) for code in b"().0NtRbQ}]{sueaqhlds\x85\x86\x87\x88\x94\x93"])
    | st.binary(max_size=3)
    | st.sampled_from([FLOATS, EMPTY, text("a"), writer.number(3), b"q\x00", b"h\x00", tensor(FLOATS, 0, (12,), (1,))]),
    max_size=30,
)  # fmt: skip


@settings(max_examples=150)
@given(parts=opcodes)
def test_pickles_made_of_random_instructions(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "random.bin"
    try:
        read(path, zipped(pickled(b"".join(parts)), DATA))
    except CheckpointError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message


def test_instructions_are_interpreted_without_the_unpickler() -> None:
    """Neither pickle nor anything else that imports by name is in the reader."""
    import tinygpt.interop.torch_file
    import tinygpt.interop.torch_pickle

    for module in (tinygpt.interop.torch_pickle, tinygpt.interop.torch_file):
        for forbidden in ("pickle", "importlib", "marshal"):
            assert not hasattr(module, forbidden)
