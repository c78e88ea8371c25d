"""Runs on several documents: how they are named, read, kept apart, and found again by a resumed run."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import OPTIONS, VERSE, assert_same_outcome
from tinygpt import interop, tokenizers
from tinygpt.data import open_tokens, split
from tinygpt.training import evaluate

pytestmark = pytest.mark.usefixtures("without_picture")
END = "<|endoftext|>"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Forty lines of verse, each a document."""
    path = tmp_path / "texts" / "rows.jsonl"
    path.parent.mkdir()
    lines = [f"{number} {line}" for number, line in enumerate((VERSE * 20).split("\n")) if line]
    path.write_text("".join(json.dumps({"text": line, "n": 1}) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
def test_documents_are_kept_apart(run: Any, rows: Path, tmp_path: Path, kind: str) -> None:
    command = ("train", *OPTIONS, f"--tokenizer={kind}", *(["--vocab-size=300"] if kind == "bpe" else []))
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    answer = run(*command, str(rows), f"--out={tmp_path / 'run'}")
    assert answer.code == 0, answer.err
    wanted = [json.loads(line)["text"] for line in rows.read_text(encoding="utf-8").splitlines()]
    tokenizer, tokens = tokenizers.load(tmp_path / "run"), open_tokens(tmp_path / "run" / "tokens.npy")
    assert tokens.end_token == tokenizer.eos_token_id == tokenizer.vocab_size - 1
    train, validation = split(tokens, 0.1)
    found = [tokenizer.decode(part).split(END) for part in (train, validation)]
    assert found[0].pop() == found[1].pop() == ""
    assert sorted(found[0] + found[1]) == sorted(wanted)
    assert f"Text:  the file {rows}; {len(tokens):,} tokens" in answer.out
    assert f"{len(found[1])} of {len(wanted)} documents for validation" in answer.out
    if kind == "bpe":  # learnt from the training documents alone
        assert tokenizer == tokenizers.BPETokenizer.train(found[0], 300)
    # The evaluation at the end is that of `eval`, and of each document by itself.
    said = run("eval", f"--model={tmp_path / 'run'}").out
    assert f"over {len(validation) - 1} tokens" in said
    model, _ = interop.load(tmp_path / "run")
    assert f"loss {evaluate(model, validation):.4f}" in said
    assert f"{evaluate(model, validation):.4f} (the best weights" in answer.out


@pytest.mark.slow
def test_a_resumed_run_reads_the_same_documents(run: Any, rows: Path, tmp_path: Path) -> None:
    command = ("train", str(rows.parent), *OPTIONS)
    assert run(*command, f"--out={tmp_path / 'whole'}").code == 0
    assert run(*command, "--steps=2", f"--out={tmp_path / 'run'}").code == 0
    shutil.copy(rows, tmp_path / "same.jsonl")
    steps = next(option for option in OPTIONS if option.startswith("--steps"))
    for data in (str(tmp_path / "same.jsonl"), str(rows.parent)):
        assert run("train", data, "--resume", steps, "--decay-steps=6", f"--out={tmp_path / 'run'}").code in (0, 2)
    (tmp_path / "same.jsonl").write_text('{"text": "another"}', encoding="utf-8")
    answer = run("train", str(tmp_path / "same.jsonl"), "--resume", f"--out={tmp_path / 'run'}")
    assert_one_sentence(answer, "uses a different text than the file .*same.jsonl: the folder")
    for option, words in (
        ("--encoding=latin-1", "has --encoding utf-8, not latin-1: leave --encoding out"),
        ("--cross-documents", "has --cross-documents False, not True"),
    ):
        assert_one_sentence(run("train", "--resume", option, f"--out={tmp_path / 'run'}"), words)
    assert run("train", "--resume", "--encoding=utf-8", f"--out={tmp_path / 'run'}").code == 0


def test_across_documents(run: Any, rows: Path, tmp_path: Path) -> None:
    assert run("train", str(rows), *OPTIONS, "--cross-documents", f"--out={tmp_path / 'run'}").code == 0
    assert run("train", str(rows), *OPTIONS, f"--out={tmp_path / 'apart'}").code == 0
    tokens, apart = (open_tokens(tmp_path / name / "tokens.npy") for name in ("run", "apart"))
    assert tokens.end_token is None
    np.testing.assert_array_equal(tokens, apart)
    assert json.loads((tmp_path / "run" / "text.json").read_text())["cross_documents"] is True


def test_a_few_long_documents_are_cut(run: Any, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for name in "abc":
        (tmp_path / "books" / f"{name}.txt").write_text(VERSE * 20, encoding="utf-8")
    answer = run("train", str(tmp_path / "books"), *OPTIONS, f"--out={tmp_path / 'run'}")
    assert answer.code == 0
    assert f"Text:  the folder {tmp_path / 'books'} (3 files); " in answer.out
    assert ", the last 10% for validation" in answer.out
    tokens = open_tokens(tmp_path / "run" / "tokens.npy")
    assert len(split(tokens, 0.1)[0]) == int(0.9 * len(tokens))


@pytest.mark.slow
def test_a_tokenizer_from_a_folder(run: Any, rows: Path, tmp_path: Path) -> None:
    assert run("train", str(rows), *OPTIONS, f"--out={tmp_path / 'first'}").code == 0
    command = ("train", str(rows), *OPTIONS, f"--tokenizer={tmp_path / 'first'}")
    assert run(*command, f"--out={tmp_path / 'second'}").code == 0
    assert_same_outcome(tmp_path / "first", tmp_path / "second")
    assert run("train", "--resume", f"--tokenizer={tmp_path / 'first'}", f"--out={tmp_path / 'second'}").code == 0
    assert_one_sentence(run("train", "--resume", "--tokenizer=byte", f"--out={tmp_path / 'second'}"), "not byte")
    assert_one_sentence(
        run("train", *OPTIONS, "--tokenizer=sign"), "there is no tokenizer 'sign': give character, byte"
    )
    assert_one_sentence(run("train", *OPTIONS, f"--tokenizer={tmp_path}"), "cannot read the tokenizer")
    rows.write_text('{"text": "ж"}', encoding="utf-8")
    answer = run(*command, f"--out={tmp_path / 'third'}")
    assert_one_sentence(
        answer, "the character 'ж' at position 0 of .* is not in the vocabulary of the tokenizer: remove it"
    )
    tokenizers.ByteTokenizer().save(tmp_path / "texts")
    answer = run("train", str(rows), *OPTIONS, f"--tokenizer={tmp_path / 'texts'}", f"--out={tmp_path / 'third'}")
    assert_one_sentence(answer, "the tokenizer has no end token .* or join the documents with --cross-documents")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_encodings_line_breaks_and_compression(run: Any, tmp_path: Path, kind: str) -> None:
    """However a text is stored, the run is the same."""
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    content = VERSE * 20 + "中文é\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content.replace("\n", "\r\n").encode("gb18030")))
    (tmp_path / "c.log").write_bytes(b"\xff\xfe" + content.encode("utf-16-le"))
    options = (*OPTIONS, f"--tokenizer={kind}", *(["--vocab-size=300"] if kind == "bpe" else []))
    for name, more in (("a.txt", []), ("b.txt.gz", ["--encoding=gb18030", "--newlines=unix"]), ("c.log", [])):
        answer = run("train", str(tmp_path / name), *more, *options, f"--out={tmp_path / name[0]}")
        assert answer.code == 0, answer.err
        assert not list((tmp_path / name[0]).glob("*spool*"))
        assert run("train", "--resume", f"--data={tmp_path / name}", f"--out={tmp_path / name[0]}").code == 0
    assert_same_outcome(tmp_path / "a", tmp_path / "b")
    assert_same_outcome(tmp_path / "a", tmp_path / "c")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_among_the_files(run: Any, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    os.mkfifo(tmp_path / "pipe.jsonl")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe.jsonl").write_bytes(rows.read_bytes()))
    writer.start()
    command = ("train", *OPTIONS, "--tokenizer=bpe", "--vocab-size=300")
    answer = run(*command, str(tmp_path / "pipe.jsonl"), f"--out={tmp_path / 'piped'}")
    writer.join()
    assert answer.code == 0, answer.err
    assert run(*command, str(rows), f"--out={tmp_path / 'run'}").code == 0
    assert_same_outcome(tmp_path / "run", tmp_path / "piped")
    assert not list((tmp_path / "piped").glob("*spool*"))


def test_mistakes(run: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"--out={tmp_path / 'run'}"
    (tmp_path / "texts" / "latin.txt").write_bytes(b"\xe9t\xe9")
    for arguments, words in (
        ([str(rows), f"--data={rows}"], "the texts are given twice"),
        ([str(tmp_path / "texts")], r"the file .*latin\.txt is not UTF-8 text: byte 0 .* --skip-bad-files leaves"),
        ([str(tmp_path / "no*.txt")], "no file matches"),
        ([str(rows), "--encoding=base64"], "there is no encoding 'base64'"),
    ):
        assert_one_sentence(run("train", *arguments, *OPTIONS, out), words)
        assert not (tmp_path / "run").exists()
    answer = run("train", str(tmp_path / "texts"), "--skip-bad-files", *OPTIONS, out)
    assert answer.code == 0
    assert "1 files or rows were left out: the file " in answer.out
    assert run("train", "--resume", str(tmp_path / "texts"), out).code == 0  # the same one is left out again
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    answer = run("train", str(rows), *OPTIONS, f"--out={tmp_path / 'full'}")
    assert_one_sentence(answer, r"the token file of the file .*rows\.jsonl takes about \d+ MB, but only 0 MB are free")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(("kind", "each"), [("character", 2.0), ("byte", 2.0), ("bpe", 0.5), ("folder", None)])
def test_a_disk_without_room_is_refused_before_anything_is_encoded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, each: float | None
) -> None:
    """With as much room as the token file takes it is written; with much less nothing is."""
    text, out = tmp_path / "english.txt", tmp_path / "run"
    text.write_text("the foxes are quick and brown\n" * 4000)
    options = [str(text), f"--tokenizer={kind}", "--no-cache", *(["--vocab-size=280"] if kind == "bpe" else [])]
    if kind == "folder":
        assert run("tokenize", str(text), "--tokenizer=bpe", "--vocab-size=280", f"--out={tmp_path / 'made'}").code == 0
        options[1] = f"--tokenizer={tmp_path / 'made'}"
        each = 0.8 * (tmp_path / "made" / "tokens.npy").stat().st_size / text.stat().st_size
    needed, usage = (each or 0) * text.stat().st_size, shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(needed * 0.9)))
    with monkeypatch.context() as patch:
        patch.setattr("tinygpt.training.text.prepare._write_text", None)  # nothing is encoded
        answer = run("tokenize", *options, f"--out={out}")
    assert_one_sentence(
        answer, r"the token file of the file .*english\.txt takes about \d+ MB, but only \d+ MB are free"
    )
    assert not out.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(needed * 1.1)))
    assert run("tokenize", *options, f"--out={out}").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_cleaning_is_said_and_kept(run: Any, rows: Path, tmp_path: Path, kind: str) -> None:
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    command = ("train", *OPTIONS, f"--tokenizer={kind}", *(["--vocab-size=300"] if kind == "bpe" else []))
    lines = rows.read_text(encoding="utf-8")
    dirty = tmp_path / "dirty.jsonl"
    dirty.write_text(lines.replace("question", "ques\\u0000tion", 1) + lines.splitlines()[3] + "\n", encoding="utf-8")
    answer = run(*command, str(dirty), "--clean=control,duplicates", f"--out={tmp_path / 'run'}")
    assert answer.code == 0, answer.err
    assert "Cleaned: 1 control characters removed, 1 exact duplicates left out\n" in answer.out
    assert run(*command, str(rows), f"--out={tmp_path / 'clean'}").code == 0
    assert_same_outcome(tmp_path / "run", tmp_path / "clean")
    assert run("train", "--resume", str(dirty), f"--out={tmp_path / 'run'}").code == 0
    assert_one_sentence(run("train", "--resume", "--clean=nfc", f"--out={tmp_path / 'run'}"), "has --clean control,dup")
    assert_one_sentence(run(*command, str(dirty), "--clean=html", f"--out={tmp_path / 'x'}"), "no cleaning 'html'")
