"""Opening files: compressed, damaged, in any encoding, marked or not."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.data import opening
from tinygpt.data.opening import check_encoding, decoded, opened, suffix
from tinygpt.errors import MissingExtraError, UsageError

TEXT = "a€𝄞中文\r\n" * 7
MARKS = {
    "utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE, "gb18030": b"\x84\x31\x95\x33",
}  # fmt: skip


def compress(content: bytes, kind: str) -> bytes:
    if kind == ".zst":
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
        return bytes(opening.zstandard().compress(content))
    return {".gz": gzip.compress, ".xz": lzma.compress, "": bytes}[kind](content)


@pytest.mark.parametrize("kind", ["", ".gz", ".xz", ".zst"])
def test_compressed_or_not(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes(compress(b"first ", kind) + compress(b"second", kind))  # members and frames may follow each other
    with opened(path) as file:
        assert file.read() == b"first second"


@pytest.mark.parametrize("kind", [".gz", ".xz", ".zst"])
def test_damaged_or_cut_short(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / f"a.txt{kind}", compress(bytes(range(256)) * 40, kind)
    changed = content[:20] + b"?" + content[21:]  # Zstandard's library writes no checksum unless asked to
    for damaged in (content[:-3], content[: len(content) // 2], b"no archive", *([changed] if kind != ".zst" else [])):
        path.write_bytes(damaged)
        with (
            pytest.raises(UsageError, match=rf"a\.txt\{kind} is damaged or cut short \(.*check it with"),
            opened(path) as file,
        ):
            file.read()


def test_zstandard_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.zst").write_bytes(b"")
    with (
        pytest.raises(MissingExtraError, match=r"\.zst files needs the package 'backports.zstd'"),
        opened(tmp_path / "a.zst"),
    ):
        pass


def test_the_kind_is_in_the_name() -> None:
    found = [suffix(name) for name in ("a.csv", "a.b.CSV.GZ", "a.gz", "folder.d/a", "-", "a.txt.zst")]
    assert found == [".csv", ".csv", "", "", "", ".txt"]


# Encodings --------------------------------------------------------------------------------------------


def text_of(content: bytes, encoding: str = "utf-8", chunk: int = 1 << 20) -> str:
    return "".join(decoded(io.BytesIO(content), encoding, "the file a", chunk))


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_encodings(encoding: str, chunk: int) -> None:
    assert text_of(TEXT.encode(encoding), encoding, chunk) == TEXT
    assert text_of("é".encode("latin-1"), "latin-1", chunk) == "é"


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize("kind", MARKS)
def test_a_byte_order_mark_is_honoured(kind: str, chunk: int) -> None:
    for asked in ("utf-8", "latin-1"):
        assert text_of(MARKS[kind] + TEXT.encode(kind), asked, chunk) == TEXT
        assert text_of(MARKS[kind], asked, chunk) == ""
    assert text_of(MARKS[kind] * 2, "utf-8", chunk) == "\ufeff"  # the second is a character


@settings(deadline=None)
@given(before=st.text(max_size=9), chunk=st.integers(1, 12), encoding=st.sampled_from(["utf-8", "gb18030", "ascii"]))
def test_what_can_not_be_decoded_is_named(before: str, chunk: int, encoding: str) -> None:
    begin = before.encode(encoding, errors="ignore")
    line = begin.count(b"\n") + 1
    with pytest.raises(UsageError, match=rf"^the file a is not .* text: byte {len(begin)} \(0xff\) in line {line} is"):
        text_of(begin + b"\xff\xff" + begin, encoding, chunk)


def test_what_was_read_is_seen() -> None:
    seen = bytearray()
    content = MARKS["utf-16-le"] + TEXT.encode("utf-16-le")
    assert "".join(decoded(io.BytesIO(content), "utf-8", "a", 5, seen.extend)) == TEXT
    assert seen == content


@pytest.mark.parametrize("name", ["base64", "rot13", "a\0b"])
def test_encodings_that_are_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(UsageError, match="there is no encoding"):
        check_encoding(name)
    monkeypatch.setattr(codecs, "lookup", {}.__getitem__)  # a package may have registered one that takes every name
    with pytest.raises(UsageError, match="there is no encoding 'klingon': give one that Python knows, such as utf-8"):
        check_encoding("klingon")


def test_an_encoding_has_one_name() -> None:
    assert check_encoding("GB18030") == "gb18030"
