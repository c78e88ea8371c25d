"""The text of a run: pipes, names, what is learnt from it; and settings that no machine has the memory for."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt
from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import ENVIRONMENT, OPTIONS, VERSE, assert_same_outcome, write_text
from tinygpt import GPT, GPTConfig, memory, tokenizers
from tinygpt.data import open_tokens, read_text, split
from tinygpt.data.tokens import write_token_parts
from tinygpt.errors import CheckpointError, UsageError
from tinygpt.files import shown
from tinygpt.tokenizers import ByteTokenizer

pytestmark = pytest.mark.usefixtures("without_picture")
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


# Where it comes from ----------------------------------------------------------------------------


@pytest.mark.slow
@posix
@pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
def test_a_pipe_is_a_text(run: Any, text: Path, tmp_path: Path, kind: str) -> None:
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(text.read_bytes()))
    writer.start()
    command = ("train", *OPTIONS, f"--tokenizer={kind}")
    answer = run(*command, f"--data={tmp_path / 'fifo'}", f"--out={tmp_path / 'run'}")
    writer.join()
    assert answer.code == 0, answer.err
    assert f"Text:  the pipe {tmp_path / 'fifo'}; " in answer.out
    assert run(*command, f"--data={text}", f"--out={tmp_path / 'file'}").code == 0
    assert_same_outcome(tmp_path / "run", tmp_path / "file")
    assert not list((tmp_path / "run").glob("*spool*"))
    assert run("train", "--resume", f"--data={text}", f"--out={tmp_path / 'run'}").code == 0  # it is the same text


@pytest.mark.slow
def test_the_standard_input_is_a_text(text: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinygpt", "train", *OPTIONS, "--data=-", f"--out={tmp_path / 'run'}"]
    for content, code, words in ((text.read_bytes(), 0, "Text:  the standard input; "), (b"", 2, "")):
        done = subprocess.run(command, input=content, capture_output=True, timeout=60, env=ENVIRONMENT, check=False)
        assert done.returncode == code, done.stderr
        assert words in done.stdout.decode()
        command.append("--overwrite")
    assert b"the standard input is empty: there is nothing to train on" in done.stderr


def test_without_a_standard_input(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    answer = run("train", *OPTIONS, "--data=-", f"--out={tmp_path / 'run'}")
    assert_one_sentence(answer, "there is no standard input")
    monkeypatch.setattr(sys, "stdin", io.StringIO(VERSE * 20))  # as in a notebook: no bytes beneath
    assert run("train", *OPTIONS, "--data=-", f"--out={tmp_path / 'run'}").code == 0


@posix
def test_a_name_that_is_not_utf8(run: Any, text: Path, tmp_path: Path) -> None:
    data, out = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/caf\xe9.txt", b"/sorti\xe9"))
    Path(data).write_bytes(text.read_bytes())
    answer = run("train", *OPTIONS, f"--data={data}", f"--out={out}")
    assert answer.code == 0, answer.err
    assert f"the file {tmp_path}/caf\ufffd.txt" in answer.out
    assert "caf\ufffd.txt" in json.loads((Path(out) / "text.json").read_text(encoding="utf-8"))["description"]
    assert run("train", "--resume", f"--data={data}", f"--out={out}").code == 0
    for content, words in (
        (b"", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"few", "the validation part of .* has 1 tokens"),
    ):
        Path(data).write_bytes(content)
        assert_one_sentence(run("train", *OPTIONS, f"--data={data}", f"--out={tmp_path / 'run'}"), words)
    Path(data).unlink()
    assert_one_sentence(run("train", *OPTIONS, f"--data={data}", f"--out={tmp_path / 'run'}"), "cannot read .*caf")
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\ufffd"


def test_a_tilde_is_the_home_folder(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_text(tmp_path / "verse.txt")
    assert run("train", *OPTIONS, "--data=~/verse.txt", "--out=~/run").code == 0
    assert (tmp_path / "run" / "checkpoints.json").exists()
    assert_one_sentence(run("train", *OPTIONS, "--data=~nobody-of-this-name/x"), "cannot read ~nobody")


@pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
def test_a_text_that_is_empty_or_too_short_is_named(run: Any, tmp_path: Path, kind: str) -> None:
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    path, out = tmp_path / "small.txt", tmp_path / "run"
    for content, words in (
        ("", rf"the file {path} is empty"),
        ("\ufeff", rf"the file {path} is empty"),
        ("a", rf"the (training|validation) part of the file {path} (is empty|has 0 tokens)"),
        ("abcdefghijklmn", r"the validation part of the file \S+ has [12] tokens"),
    ):
        path.write_text(content, encoding="utf-8")
        answer = run("train", *OPTIONS, f"--data={path}", f"--tokenizer={kind}", f"--out={out}")
        assert_one_sentence(answer, words)
        assert "Tokenizer" not in answer.err  # no advice in Python on a command line
        assert not out.exists()


# What is learnt from it -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["character", "byte"])
def test_the_text_is_read_once(
    run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real, seen = tinygpt.data.tokens.opened, []

    def opened(path: Any) -> Any:
        seen.append(Path(path))
        return real(path)

    monkeypatch.setattr(tinygpt.data.tokens, "opened", opened)
    assert run("train", *OPTIONS, f"--data={text}", f"--tokenizer={kind}", f"--out={tmp_path / 'run'}").code == 0
    assert seen == [text]


@pytest.mark.slow
def test_texts_that_change_while_they_are_read(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BPE reads documents twice, to learn and to encode."""
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")

    def change(*arguments: Any, **options: Any) -> None:  # after the merges were learnt, before the texts are encoded
        path.write_text("§" + path.read_text(encoding="utf-8"), encoding="utf-8")

    path = write_text(tmp_path / "log.txt")
    write_text(tmp_path / "other.txt")
    monkeypatch.setattr("tinygpt.training.text.prepare.require_memory", change)
    answer = run("train", str(tmp_path), *OPTIONS, "--tokenizer=bpe", "--vocab-size=300", f"--out={tmp_path / 'run'}")
    assert_one_sentence(answer, r"the folder .* \(2 files\) changed while it was read: wait until it is written")


@pytest.mark.slow
def test_bpe_learns_from_what_the_model_is_trained_on(run: Any, tmp_path: Path) -> None:
    """The validation text has longer tokens than the training text: their shares of bytes and of tokens differ."""
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    dice, path = random.Random(3), tmp_path / "text.txt"
    words = ["".join(dice.choices("abcdefgh", k=7)) for _ in range(800)]
    content = " ".join(words) + " the same words, the same words" * 23 + "é"
    command = ("train", *OPTIONS, f"--data={path}", "--tokenizer=bpe", "--vocab-size=300")
    found = []
    for name in ("one", "other"):
        path.write_text(content, encoding="utf-8")
        assert run(*command, f"--out={tmp_path / name}").code == 0
        tokens = open_tokens(tmp_path / name / "tokens.npy")
        found.append(tokenizers.load(tmp_path / name))
        train, validation = split(tokens, 0.1)
        begins = len(found[-1].token_bytes(np.asarray(train)))
        size = len(content.encode("utf-8"))
        assert begins == round(0.9 * size)  # of ASCII alone, a character is a byte
        assert abs(len(train) - 0.9 * len(tokens)) > 20
        assert found[-1].decode(tokens) == content
        assert found[-1] == tokenizers.BPETokenizer.train(content[:begins], 300)
        said = run("eval", f"--model={tmp_path / name}").out
        assert f"over {len(validation) - 1} tokens" in said
        content = content[:begins] + "§" * ((size - begins) // 2) + " " * ((size - begins) % 2)
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [0, 3, 8])
def test_a_token_file_says_where_its_validation_text_begins(tmp_path: Path, count: int) -> None:
    path = tmp_path / "tokens.npy"
    content = "some text"[: count + 1] or "s"
    counts = write_token_parts([content[:count], content[count:]], ByteTokenizer(), path, "the text", 0.25)
    tokens = open_tokens(path)
    assert isinstance(tokens, np.memmap)
    assert counts == [len(part) for part in split(tokens, 0.25)]
    np.testing.assert_array_equal(np.concatenate(split(tokens, 0.25)), tokens)
    assert len(split(tokens, 0.5)[0]) == len(tokens) // 2  # another share is another question
    assert len(split(tokens[:4], 0.25)[0]) == int(0.75 * len(tokens[:4]))  # and so is a part of them
    for mmap_mode in (None, "r"):
        np.testing.assert_array_equal(np.load(path, mmap_mode=mmap_mode), tokens)  # other readers see the array
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:-8] + b"\xff" * 8):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"tokens\.npy is damaged: the \d+ or more bytes after its array"):
            open_tokens(path)


def test_all_bytes_of_a_text_are_seen(tmp_path: Path) -> None:
    path, seen = tmp_path / "text.txt", []
    path.write_bytes("\ufeffzwölf\r\n".encode() * 3)
    assert "".join(read_text(path, 2, seen.append)) == ("\ufeffzwölf\r\n" * 3)[1:]
    assert b"".join(seen) == path.read_bytes()


# What no machine has the memory for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--n-layer=100000000"],
            r"n_layer 100000000 .* has 78,400,000,080 parameters, which take 1,869 GB with their",
        ),
        (["--n-embd=1000000000000", "--n-head=1"], "has more than 10.18 parameters"),
        (["--block-size=99999999999999999999"], "block_size 99999999999999999999"),
        ([f"--block-size={10**4000}"], "use a smaller model"),
        (["--tokenizer=bpe", "--vocab-size=99999999999999"], "vocab_size 99999999999999"),
        (["--batch-size=1000000000"], r"a batch of batch_size 1000000000 and block_size 8 takes at least 2,\d+ GB"),
        (["--seed=18446744073709551616"], r"a seed is an integer from 0 to 2\*\*64 - 1"),
        (["--seed=99999999999999999999999999999"], "a seed is an integer"),
    ],
)
def test_sizes_without_sense_are_refused_at_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    """Before a text is read or a folder is made; with --overwrite too."""
    monkeypatch.setattr(memory, "memory_limit", lambda backend: 16 << 30)
    for more in ([], ["--overwrite"]):
        answer = run(
            "train", *OPTIONS, f"--data={tmp_path / 'absent.txt'}", f"--out={tmp_path / 'run'}", *options, *more
        )
        assert_one_sentence(answer, words)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_without_sense_is_refused_at_once(run: Any, model: Path, text: Path) -> None:
    for data in ([], [f"--data={text}"]):
        answer = run("eval", f"--model={model}", f"--batch-size={10**12}", *data)
        assert_one_sentence(answer, "a batch of batch_size 1000000000000 and block_size 8 takes")


def test_a_vocabulary_that_the_text_brings_counts(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("".join(map(chr, range(0x4E00, 0x9E00))) * 2, encoding="utf-8")
    monkeypatch.setattr(memory, "memory_limit", lambda backend: 2 << 20)
    answer = run("train", *OPTIONS, f"--data={tmp_path / 'text.txt'}", f"--out={tmp_path / 'run'}")
    assert_one_sentence(answer, "vocab_size 20480, .*: use a smaller model")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variant", [{}, {"n_inner": 7}, {"tie_word_embeddings": False}])
def test_parameters_are_counted_as_the_model_counts_them(variant: dict[str, Any], bias: bool) -> None:
    config = GPTConfig(vocab_size=11, block_size=7, n_layer=3, n_head=2, n_embd=6, bias=bias, **variant)
    assert memory.parameter_count(config) == GPT(config).num_parameters()


def test_the_limit_is_the_machines_or_the_processs() -> None:
    assert memory.memory_limit() > 1 << 28
    if sys.platform == "win32":
        return
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
    code = f"{limited}from tinygpt.memory import memory_limit; print(memory_limit())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert int(done.stdout) == min(3 << 30, memory.memory_limit())


def test_a_config_may_be_of_any_size() -> None:
    with pytest.raises(UsageError, match="PB"):
        memory.require_memory(tinygpt.GPTConfig(10**9, 10**9, 10**9, 1, 10**9), 1)
