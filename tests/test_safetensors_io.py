"""The safetensors format: against the library that defines it; exact 16-bit numbers; headers that lie."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tinygpt.errors import CheckpointError, ShapeError, UsageError
from tinygpt.safetensors_io import SafetensorsFile, write_safetensors

rng = np.random.default_rng(0)
ARRAYS = {
    "f4": rng.standard_normal((3, 4)).astype("f4"), "f8": rng.standard_normal(5), "number": np.array(2.5, "f4"),
    "i8": np.arange(-3, 4), "i4": np.arange(6, dtype="i4").reshape(2, 3), "bool": np.array([True, False, True]),
    "u1": np.arange(7, dtype="u1"), "none": np.empty((0, 3), "f4"), "f2": rng.standard_normal(9).astype("f2"),
}  # fmt: skip


def written(path: Path, arrays: dict[str, np.ndarray], dtype: str | None = None) -> Path:
    with open(path, "wb") as file:
        digest = write_safetensors(file, arrays, {"format": "pt"}, dtype)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return path


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def read(path: Path) -> dict[str, np.ndarray]:
    with SafetensorsFile(path) as file:
        return {name: file.read(name) for name in file.arrays}


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    assert_same(load_file(written(tmp_path / "ours", ARRAYS)), ARRAYS)
    assert_same(read(tmp_path / "ours"), ARRAYS)
    save_file(ARRAYS, tmp_path / "theirs", {"a": "b"})
    assert_same(read(tmp_path / "theirs"), ARRAYS)
    with SafetensorsFile(tmp_path / "theirs") as file:
        assert file.metadata == {"a": "b"}


def test_any_layout_of_memory_is_written(tmp_path: Path) -> None:
    array = rng.standard_normal((6, 8)).astype("f4")
    arrays = {"turned": array.T, "strided": array[::2, ::-3], "row": np.broadcast_to(array[0], (4, 8))}
    assert_same(load_file(written(tmp_path / "file", arrays)), {name: a.copy() for name, a in arrays.items()})


def test_reading_converts_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.array_file.PIECE", 7)
    written(tmp_path / "file", ARRAYS)
    with SafetensorsFile(tmp_path / "file") as file:
        for name in ("f4", "f8", "f2", "number", "none"):
            for dtype in ("f4", "f8"):
                out = np.full(ARRAYS[name].shape, 7, dtype)
                file.read_into(name, out)
                np.testing.assert_array_equal(out, ARRAYS[name].astype(dtype))
        with pytest.raises(ShapeError, match="'f4' needs a contiguous array of shape"):
            file.read_into("f4", np.empty((4, 3), "f4"))
        with pytest.raises(ShapeError, match="contiguous"):
            file.read_into("f4", np.empty((4, 3), "f4").T)


# 16 bits ----------------------------------------------------------------------------------------

EVERY_UPPER_HALF = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


def nearest_bfloat16(x: float) -> float:
    """By search, not by arithmetic on bits: the nearest of all of them, ties to the even one."""
    finite = EVERY_UPPER_HALF[np.isfinite(EVERY_UPPER_HALF)].astype(np.float64)
    distance = np.abs(finite - x)
    best = np.flatnonzero(distance == distance.min())
    bits = finite[best].astype(np.float32).view(np.uint32) >> 16
    return float(finite[best[np.argmin(bits & 1)]])


def through(tmp_path: Path, values: np.ndarray, dtype: str) -> np.ndarray:
    return read(written(tmp_path / "file", {"x": values}, dtype))["x"]


def test_every_bfloat16_comes_back_exactly(tmp_path: Path) -> None:
    values = EVERY_UPPER_HALF
    found = through(tmp_path, values, "bfloat16")
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    known = ~np.isnan(values)
    np.testing.assert_array_equal(found[known].view(np.uint32), values[known].view(np.uint32))


@given(bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=20))
def test_bfloat16_is_rounded_to_nearest(tmp_path_factory: pytest.TempPathFactory, bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = values[np.abs(values) < 3.38e38]  # neither NaN nor what rounds to infinity
    found = through(tmp_path_factory.mktemp("bf16"), values, "bfloat16")
    np.testing.assert_array_equal(found, [nearest_bfloat16(float(x)) for x in values])


def test_bfloat16_ties_go_to_even_and_every_nan_stays_one(tmp_path: Path) -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32)
    found = through(tmp_path, bits.view(np.float32), "bfloat16")
    np.testing.assert_array_equal(found[:3].view(np.uint32) >> 16, [0x3F80, 0x3F82, 0x3F81])
    assert np.isnan(found[3:]).all()


def test_every_float16_comes_back_exactly(tmp_path: Path) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = values[~np.isnan(values)]
    found = through(tmp_path, values.astype(np.float32), "float16")
    np.testing.assert_array_equal(found.view(np.uint16), values.view(np.uint16))


@pytest.mark.parametrize(
    ("value", "dtype"), [(65520, "float16"), (-1e30, "float16"), (3.4e38, "bfloat16"), (1e39, "float32")]
)
def test_numbers_too_large_for_the_dtype_are_refused(tmp_path: Path, value: float, dtype: str) -> None:
    with pytest.raises(UsageError, match=f"x holds numbers too large for {dtype}: save it in a wider dtype"):
        write_safetensors(io.BytesIO(), {"x": np.array([1.0, value])}, {}, dtype)
    assert np.isinf(through(tmp_path, np.array([np.inf, -np.inf]), dtype)).all()  # what is infinite may stay so


def test_a_float64_beyond_float32_is_refused_in_reading(tmp_path: Path) -> None:
    written(tmp_path / "file", {"x": np.array([1e300])})
    with (
        SafetensorsFile(tmp_path / "file") as file,
        pytest.raises(CheckpointError, match="'x' holds numbers beyond the range of float32"),
    ):
        file.read_into("x", np.empty(1, np.float32))


# Headers that lie ----------------------------------------------------------------------------------


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def packed(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LIES = {
    "empty": (b"", "has 0 bytes"),
    "seven bytes": (bytes(7), "has 7 bytes"),
    "a header longer than the file": (packed({}, b"", 10**6), "should have 1000000 bytes"),
    "a header of all memory": (packed({}, b"", 2**64 - 1), "cut short or damaged"),
    "no JSON": (packed(b"{nope"), "its header is damaged"),
    "no UTF-8": (packed(b'{"\xff": 1}'), "its header is damaged"),
    "deep": (packed(b"[" * 100_000), "its header is damaged"),
    "a number of 5000 digits": (packed(b'{"x": ' + b"9" * 5000 + b"}"), "its header is damaged"),
    "a list": (packed([1]), "must be a JSON object, not list"),
    "metadata that is no text": (packed({"__metadata__": {"a": 1}}, b""), "metadata must map names to strings"),
    "metadata that is a list": (packed({"__metadata__": []}, b""), "metadata must map names to strings"),
    "an entry that is a number": (packed({"x": 3}), "'x' must have a dtype, a shape and data_offsets"),
    "an entry without a shape": (packed({"x": {"dtype": "F32", "data_offsets": [0, 8]}}), "must have a dtype, a shape"),
    "a dtype that is no name": (packed({"x": entry(7)}), "'x' has the dtype 7, which is not a string"),
    "a dtype that is a list": (packed({"x": entry(["F32"])}), r"'x' has the dtype \['F32'\]"),
    "a negative size": (packed({"x": entry(shape=[-2])}), "a shape that is not a list of sizes"),
    "a size that is no integer": (packed({"x": entry(shape=[2.0])}), "a shape that is not a list of sizes"),
    "a size that is a truth": (packed({"x": entry(shape=[True, 2])}), "a shape that is not a list of sizes"),
    "a shape that is a number": (packed({"x": entry(shape=2)}), "a shape that is not a list of sizes"),
    "a huge shape": (packed({"x": entry(shape=[2**40, 2**40])}), "a shape that is not a list of sizes"),
    "a huge shape of nothing": (packed({"x": entry(shape=[0, 2**60], offsets=[0, 0])}), "not a list of sizes"),
    "a hundred axes": (packed({"x": entry(shape=[1] * 100)}), "a shape that is not a list of sizes"),
    "one offset": (packed({"x": entry(offsets=[0])}), "data_offsets that are not a pair"),
    "a negative offset": (packed({"x": entry(offsets=[-8, 0])}), "data_offsets that are not a pair"),
    "offsets turned round": (packed({"x": entry(offsets=[8, 0])}), "does not fit the bytes 8 to 0"),
    "half a number": (packed({"x": entry("F4", [17])}), r"dtype F4 and shape \(17,\) does not fit the bytes 0 to 8"),
    "a size that is not the shape's": (packed({"x": entry(shape=[3])}), "does not fit the bytes 0 to 8"),
    "beyond the file": (packed({"x": entry(shape=[4], offsets=[0, 16])}), "has 78 bytes, but its header describes 86"),
    "bytes left over": (packed({"x": entry()}, bytes(9)), "but its header describes"),
    "a gap": (packed({"x": entry(offsets=[4, 12])}, bytes(12)), "'x' leaves a gap after the header"),
    "an overlap": (packed({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12)), "'y' overlaps 'x'"),
    "the same bytes twice": (packed({"x": entry(), "y": entry()}), "'y' overlaps 'x'"),
    "a name twice": (
        packed(b'{"x": %s, "x": %s}' % ((json.dumps(entry()).encode(),) * 2)), "the name 'x' occurs twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_one_sentence(tmp_path: Path, lie: str) -> None:
    content, words = LIES[lie]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        SafetensorsFile(tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "shape", "bits"),
    [("F8_E4M3", [8], 8), ("F8_E5M2", [2, 4], 8), ("F8_E8M0", [8], 8), ("F4", [16], 4), ("C64", [1], 64)],
)
def test_numbers_that_are_not_read_are_called_what_they_are(
    tmp_path: Path, code: str, shape: list[int], bits: int
) -> None:
    """The file is sound: what is beside them can be read, and nobody is told to fetch it again."""
    (tmp_path / "file").write_bytes(packed({"x": entry(code, shape), "y": entry(offsets=[8, 16])}, bytes(16)))
    with SafetensorsFile(tmp_path / "file") as file:
        assert file.arrays["x"].code == code
        np.testing.assert_array_equal(file.read("y"), [0, 0])
        for act in (
            lambda: file.read("x"),
            lambda: file.read_into("x", np.empty(shape, "f4")),
            lambda: list(file.pieces("x", "f4")),
        ):
            with pytest.raises(CheckpointError, match=f"holds 'x' as {code}, a {bits}-bit dtype") as caught:
                act()
            assert "sound" not in str(caught.value)
            assert "download" not in str(caught.value)


def test_a_dtype_of_a_later_format_is_not_called_damage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(packed({"x": entry("F33")}))
    with pytest.raises(CheckpointError, match="holds 'x' in the dtype 'F33', which tinygpt does not support") as caught:
        SafetensorsFile(tmp_path / "file")
    assert "sound" not in str(caught.value)


def test_a_long_header_is_sound(tmp_path: Path) -> None:
    """The package takes up to 100 MB; some programs write a run's whole history into the metadata."""
    save_file({"x": np.arange(3.0)}, tmp_path / "file", {"history": "x" * 12_000_000})
    with SafetensorsFile(tmp_path / "file") as file:
        assert len(file.metadata["history"]) == 12_000_000
        np.testing.assert_array_equal(file.read("x"), [0, 1, 2])


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        SafetensorsFile(tmp_path / "nothing")
    for name in (tmp_path, "a\0b", "a\ud800b"):
        with pytest.raises(CheckpointError, match="cannot read"):
            SafetensorsFile(name)


def test_a_file_cut_while_it_is_read_is_one_sentence(tmp_path: Path) -> None:
    written(tmp_path / "file", {"x": np.zeros(1000, "f4")})
    with SafetensorsFile(tmp_path / "file") as file:
        with open(tmp_path / "file", "rb+") as other:
            other.truncate(500)
        with pytest.raises(CheckpointError, match="truncated while it was being read"):
            file.read("x")


def test_a_dtype_without_a_name_is_refused() -> None:
    for array in (np.zeros(2, complex), np.zeros(2, ">f4"), np.array(["a"])):
        with pytest.raises(UsageError, match="can't hold x of dtype"):
            write_safetensors(io.BytesIO(), {"x": array}, {})
