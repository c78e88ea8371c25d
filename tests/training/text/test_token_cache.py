"""The cache of token files: the same run with it as without it, whatever becomes of the text and of the cache."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import OPTIONS, VERSE, assert_same_outcome
from tinygpt.training.text import prepare as run_text
from tinygpt.training.text import token_cache

pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
pytestmark = pytest.mark.usefixtures("without_picture")
USED = "Tokens: from the cache"
BPE = ("--tokenizer=bpe", "--vocab-size=300")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_LEAST", 100)
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.txt").write_text(f"{number} {VERSE[number:]}", encoding="utf-8")
    return folder


@pytest.fixture
def make(run: Any, tmp_path: Path) -> Callable[..., tuple[bool, dict[str, bytes]]]:
    """Whether `tinygpt tokenize` used the cache, and the files that it wrote."""

    def made(*options: object) -> tuple[bool, dict[str, bytes]]:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        answer = run("tokenize", *map(str, options), f"--out={out}")
        assert answer.code == 0, answer.err
        return USED in answer.out, {path.name: path.read_bytes() for path in sorted(out.iterdir())}

    return made


def test_the_second_run_is_the_first(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("train", str(text), *OPTIONS, *BPE)
    first = run(*command, f"--out={tmp_path / 'first'}")
    assert first.code == 0, first.err
    assert USED not in first.out
    with monkeypatch.context() as patch:
        patch.setattr(run_text, "_write_text", None)  # nothing is encoded
        second = run(*command, f"--out={tmp_path / 'second'}")
    assert second.code == 0, second.err
    assert f"{USED}, {tmp_path / 'cache' / 'tokens'}" in second.out
    assert "--no-cache encodes the text again" in second.out
    third = run(*command, "--no-cache", f"--out={tmp_path / 'third'}")
    assert USED not in third.out
    for name in ("second", "third"):
        assert_same_outcome(tmp_path / "first", tmp_path / name)
        for file in ("tokens.npy", "text.json", "tokenizer.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "first" / file).read_bytes()
    assert "cache" not in (tmp_path / "third" / "config.toml").read_text()
    assert run("train", "--resume", f"--data={text}", f"--out={tmp_path / 'second'}").code == 0
    dry = run(*command, "--dry-run", f"--out={tmp_path / 'fourth'}")
    assert dry.code == 0, dry.err
    assert USED not in dry.out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_sweep_encodes_its_text_once(
    run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    encoded = []
    write = run_text._write_text

    def counted(*arguments: Any) -> Any:
        encoded.append(arguments)
        return write(*arguments)

    monkeypatch.setattr(run_text, "_write_text", counted)
    options = ["--tokenizer=" + kind, "--vocab-size=300", "--steps=2", "--sweep=lr=1e-3,2e-3 dropout=0,0.1"]
    answer = run("train", str(text), *OPTIONS, *options, f"--out={tmp_path / 'sweep'}")
    assert answer.code == 0, answer.err
    assert (len(encoded), answer.out.count(USED)) == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "word", "folder"])
def test_whatever_changes_the_tokens_is_noticed(make: Any, books: Path, tmp_path: Path, kind: str) -> None:
    options: tuple[object, ...] = (books, f"--tokenizer={kind}", "--vocab-size=300")
    if kind == "folder":
        make(books, *BPE)
        shutil.copytree(tmp_path / "out", tmp_path / "tokenizer")
        options = (books, f"--tokenizer={tmp_path / 'tokenizer'}")
    used, first = make(*options)
    assert (used, make(*options)) == (False, (True, first))
    others: list[tuple[object, ...]] = [
        ("--newlines=unix",), ("--clean=nfc",), ("--cross-documents",), ("--validation-fraction=0.2",),
        ("--encoding=latin-1",), ("--skip-bad-files",),
    ]  # fmt: skip
    for other in others if kind == "folder" else [*others, ("--vocab-size=280",)]:
        assert not make(*options, *other)[0], other
    (books / "07.txt").write_bytes((books / "07.txt").read_bytes().replace(b"e", b"i", 1))  # of the same length
    used, changed = make(*options)
    assert not used
    assert changed["tokens.npy"] != first["tokens.npy"]
    os.rename(books / "07.txt", books / "31.txt")  # the documents in another order
    used, moved = make(*options)
    assert not used
    assert moved == make(*options, "--no-cache")[1]
    assert make(*options) == (True, moved)


def test_a_change_in_the_middle_of_a_long_file(make: Any, tmp_path: Path) -> None:
    """Of the same size, with the same beginning and end."""
    path = tmp_path / "long.txt"
    content = (VERSE * 200).encode()
    path.write_bytes(content)
    first = make(path, *BPE)[1]
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"qqq" + content[middle + 3 :])
    used, second = make(path, *BPE)
    assert not used
    assert second["text.json"] != first["text.json"]
    path.write_bytes(content)
    assert make(path, *BPE) == (True, first)


def test_a_text_that_changes_while_it_is_read_makes_no_wrong_entry(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, later = tmp_path / "long.txt", (VERSE.replace("a", "o") * 20).encode()
    path.write_bytes((VERSE * 20).encode())
    real = token_cache.token_cache

    def then_changed(*arguments: Any) -> Any:
        found = real(*arguments)
        path.write_bytes(later)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(run_text, "token_cache", then_changed)
        assert not make(path, *BPE)[0]
    path.write_bytes((VERSE * 20).encode())
    used, found = make(path, *BPE)
    assert not used
    assert found == make(path, *BPE, "--no-cache")[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokens.npy", "tokenizer.json", "entry.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "empty"])
def test_a_damaged_entry_is_made_again(make: Any, run: Any, text: Path, cache: Path, name: str, damage: str) -> None:
    first = make(text, *BPE)[1]
    (entry,) = cache.iterdir()
    content = bytearray((entry / name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        (entry / name).unlink()
    else:
        (entry / name).write_bytes({"changed": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    used, second = make(text, *BPE)
    assert (used, second) == (False, first)
    assert make(text, *BPE) == (True, first)
    assert len(list(cache.iterdir())) == 1


def test_an_entry_with_other_files_is_not_copied(make: Any, text: Path, cache: Path, tmp_path: Path) -> None:
    make(text, *BPE)
    (entry,) = cache.iterdir()
    about = json.loads((entry / "entry.json").read_bytes())
    about["files"] = {"../escaped": ""} | about["files"]
    (entry / "entry.json").write_text(json.dumps(about))
    used, files = make(text, *BPE)
    assert not used
    assert (
        sorted(files) == ["text.json", "tokenizer.json", "tokenizer_config.json", "tokens.npy"] or "tokens.npy" in files
    )
    assert not list(tmp_path.rglob("*escaped*"))


def test_what_is_not_cached(
    make: Any, text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("character", "byte"):
        assert not make(text, f"--tokenizer={kind}")[0]
    assert not make(text, *BPE, "--no-cache")[0]
    monkeypatch.setattr(token_cache, "_LEAST", text.stat().st_size + 1)
    assert not make(text, *BPE)[0]
    assert not cache.exists()


def test_compressed_texts_and_what_is_said_of_them(make: Any, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl.gz"
    rows = [{"text": f"{number} {VERSE}\x07"} for number in range(30)] + [{"text": 3}]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    said = []
    for _ in range(2):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        answer = run("tokenize", str(path), *BPE, "--skip-bad-files", "--clean=control", f"--out={tmp_path / 'run'}")
        said.append(answer.out)
    assert [USED in words for words in said] == [False, True]
    for words in said:
        assert "Cleaned: 30 control characters removed" in words
        assert "1 files or rows were left out" in words


def test_the_cache_is_bounded(make: Any, text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(count: int) -> tuple[object, ...]:
        return (text, "--tokenizer=bpe", f"--vocab-size={count}")

    assert not make(*sizes(270))[0]
    (entry,) = cache.iterdir()
    size = sum(path.stat().st_size for path in entry.iterdir())
    monkeypatch.setattr(token_cache, "_MOST", int(2.5 * size))
    left = cache / f".{entry.name}.0123abcd.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    assert not make(*sizes(271))[0]
    assert not left.exists()
    for path in cache.iterdir():
        os.utime(path / "entry.json", (1, 1) if path == entry else (2, 2))
    assert make(*sizes(270))[0]  # now it is the other one that was used least recently
    assert not make(*sizes(272))[0]
    assert len(list(cache.iterdir())) == 2
    assert make(*sizes(270))[0]
    assert not make(*sizes(271))[0]
    monkeypatch.setattr(token_cache, "_MOST", size // 2)
    assert not make(*sizes(273))[0]
    assert list(cache.iterdir()) == []


def test_what_others_put_there_stays(make: Any, text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [cache / name for name in ("notes", ".left.tmp")]
    for path in others:
        path.mkdir(parents=True)
        (path / "book.txt").write_text("a" * 10)
        os.utime(path, (0, 0))
    monkeypatch.setattr(token_cache, "_MOST", 1)
    assert not make(text, *BPE)[0]
    assert sorted(cache.iterdir()) == sorted(others)
    assert all((path / "book.txt").exists() for path in others)


def test_a_cache_that_can_not_be_written_is_left_out(make: Any, text: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    first = make(text, *BPE)
    assert first == make(text, *BPE)
    assert not first[0]
    assert cache.read_text() == "a file"
    cache.unlink()
    assert not make(text, *BPE)[0]
    assert make(text, *BPE) == (True, first[1])


def test_a_run_that_can_not_use_the_tokens_says_so_as_ever(run: Any, text: Path, tmp_path: Path) -> None:
    command = ("train", str(text), *OPTIONS, *BPE)
    assert run(*command, f"--out={tmp_path / 'first'}").code == 0
    answers = [
        run(*command, "--block-size=100000", more, f"--out={tmp_path / 'x'}") for more in ("--no-cache", "--lr=0.1")
    ]
    assert answers[0].code == answers[1].code == 2
    assert answers[0].err == answers[1].err
    assert not (tmp_path / "x").exists()
