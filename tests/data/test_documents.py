"""Documents: which files a name means, where one document ends and the next begins, what can't be read."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_rows import write
from tinygpt.data import Documents
from tinygpt.data.documents import Piece, _unix
from tinygpt.data.sources import find_files
from tinygpt.errors import UsageError


def joined(pieces: Iterable[Piece]) -> list[str]:
    """The documents that the pieces make up."""
    found, held = [], ""
    for piece in pieces:
        assert piece.text
        held += piece.text
        if piece.last:
            found.append(held)
            held = ""
    assert not held
    return found


def texts(*names: str | Path, **settings: object) -> list[str]:
    return joined(Documents(names, **settings))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "books" / "old").mkdir(parents=True)
    write(tmp_path, "books/b.txt", "second")
    write(tmp_path, "books/a.md", "first")
    write(tmp_path, "books/old/c.jsonl.gz", gzip.compress(b'{"text": "third"}\n{"text": ""}\n{"text": "fourth"}'))
    write(tmp_path, "books/old/d.csv", "n,text\n1,fifth\n")
    for name in ("books/.hidden.txt", "books/settings.json", "books/old/picture.png"):
        write(tmp_path, name, b"\0")
    return tmp_path


def test_folders_files_and_patterns(folder: Path) -> None:
    assert texts(folder / "books") == ["first", "second", "third", "fourth", "fifth"]
    assert texts(folder / "books" / ".." / "books" / "b.txt", folder / "books") == [
        "second",
        "first",
        "third",
        "fourth",
        "fifth",
    ]
    assert texts(f"{folder}/books/*.txt", f"{folder}/**/*.csv") == ["second", "fifth"]
    write(folder, "books/[a]*.log", "a name like a pattern")
    assert texts(f"{folder}/books/[a]*.log") == ["a name like a pattern"]
    assert texts(write(folder, "t.json", '{"text": "named"}')) == ["named"]


def test_names_that_mean_nothing(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "pictures").mkdir()
    write(folder, "pictures/a.png", b"")
    for name, words in (
        ("absent.txt", r"cannot read .*absent\.txt: No such file"),
        ("books/*.pdf", r"no file matches .*\*\.pdf"),
        ("empty", r"the folder .*empty holds no text: expected files that end in \.txt, .* but it has no files"),
        ("pictures", r"pictures holds no text: .* but there are 1 other files, such as .*a\.png"),
    ):
        with pytest.raises(UsageError, match=words):
            find_files([folder / "books", str(folder / name)])


def test_single(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def single(*names: str | Path) -> bool:
        return Documents(names).single

    assert single(folder / "books" / "b.txt")
    assert single("-")
    assert not single(folder / "books" / "old" / "d.csv")
    assert not single(folder / "books")
    monkeypatch.setattr("sys.stdin", io.StringIO("typed"))
    assert texts("-") == ["typed"]


@settings(deadline=None)
@given(text=st.text(st.sampled_from("ab \r\n"), min_size=1, max_size=30))
def test_line_breaks(tmp_path_factory, text: str) -> None:
    folder = tmp_path_factory.mktemp("text")
    path = write(folder, "a.txt", text)
    row = write(folder, "a.jsonl", json.dumps({"text": text}))
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    for name in (path, row):
        assert texts(name) == [text]
        assert texts(name, newlines="unix") == [unix]
    assert "".join(_unix(text)) == unix  # character by character


def test_a_long_document_comes_in_pieces(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "word\n" * 500_000)
    pieces = list(Documents(path))
    assert len(pieces) > 2
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.text for piece in pieces) == "word\n" * 500_000
    assert next(iter(Documents(write(tmp_path, "b.txt", "x" * 3_000_000)))) == Piece("x" * (1 << 20), False)  # one line


def test_encodings(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "中文".encode("gb18030"))
    assert texts(path, encoding="gb18030") == ["中文"]
    marked = write(tmp_path, "b.txt", b"\xff\xfe" + "中文".encode("utf-16-le"))
    assert texts(path, marked, encoding="gb18030") == ["中文", "中文"]
    with pytest.raises(UsageError, match="there is no encoding 'base64'"):
        Documents(path, encoding="base64")
    with pytest.raises(UsageError, match="newlines must be one of keep, unix, not 'dos'"):
        Documents(path, newlines="dos")


def test_files_of_several_encodings_are_named(tmp_path: Path) -> None:
    for number, content in enumerate(("été", "é".encode("latin-1"), "à", "\nà".encode("latin-1"), b"a\0b")):
        write(tmp_path, f"{number}.txt", content)
    with pytest.raises(UsageError) as caught:
        texts(tmp_path)
    said = str(caught.value)
    assert said.startswith(
        f"3 of 5 files can't be read: the file {tmp_path}/1.txt is not UTF-8 text: byte 0 (0xe9) in "
    )
    assert f"the file {tmp_path}/3.txt is not UTF-8 text: byte 1 (0xe0) in line 2" in said
    assert f"the file {tmp_path}/4.txt, line 1: there is a NUL character" in said
    assert said.endswith("--skip-bad-files leaves such files and rows out")
    documents = Documents(tmp_path, skip_bad=True)
    assert [piece.text for piece in documents] == ["été", "à"]
    assert documents.bad.count == 3
    assert "1.txt is not UTF-8" in documents.bad.sentences[0]


def test_bad_rows_are_left_out_with_bad_files(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": 1}\n{"text": "\\u0000"}\n{}\n{"text": "b"}')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2: the column 'text' must hold a text, not 1$"):
        texts(path)
    documents = Documents(path, skip_bad=True)
    assert [piece.text for piece in documents] == ["a", "b"]
    assert documents.bad.count == 3
    assert [piece.text for piece in documents] == ["a", "b"]  # a second pass counts anew
    assert documents.bad.count == 3
    assert texts(path, skip_bad=True, keep_nul=True) == ["a", "\0", "b"]
    with pytest.raises(UsageError, match=r"the column 'text' is missing; there is 'txt'"):
        texts(write(tmp_path, "a.csv", "txt\na\n"), skip_bad=True)


def test_nul_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "a\nb".encode("utf-16-le"))
    with pytest.raises(UsageError, match=r"line 1: there is a NUL character, so .*--encoding utf-16\)$"):
        texts(path)
    assert texts(path, encoding="utf-16-le") == ["a\nb"]
    assert texts(write(tmp_path, "b.txt", "a\0"), keep_nul=True) == ["a\0"]


def test_a_pipe_that_ends_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Standard:
        buffer = io.BytesIO("abc€".encode()[:-1])

    monkeypatch.setattr("sys.stdin", Standard())
    with pytest.raises(UsageError, match=r"the standard input is not UTF-8 text: byte 3 .*unexpected end of data"):
        texts("-")
    cut = write(tmp_path, "a.txt.gz", gzip.compress(bytes(9999))[:-4])
    with pytest.raises(UsageError, match="is damaged or cut short"):
        texts(cut, keep_nul=True)


def test_all_bytes_are_seen(folder: Path) -> None:
    seen = bytearray()
    for skip_bad in (False, True):
        del seen[:]
        list(Documents([folder / "books"], skip_bad=skip_bad, see=seen.extend))
        assert bytes(seen).startswith(b"firstsecond" + b'{"text": "third"}\n')
        assert bytes(seen).endswith(b"n,text\n1,fifth\n")
