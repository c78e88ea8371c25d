"""`tinygpt train --tokenizer bpe`: merges of the training part, a run that resumes, and mistakes in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import tinygpt
from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import OPTIONS, outcome


def bpe_text(path: Path) -> Path:
    """English, then Chinese: the validation text has other merges than the training text."""
    path.write_text("the end of the beginning, the end\n" * 40 + "天气很好天气很好\n" * 3, encoding="utf-8")
    return path


@pytest.mark.slow
def test_bpe_as_tokens(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    folder, text = tmp_path / "run", bpe_text(tmp_path / "text.txt")
    command = ("train", *OPTIONS, f"--data={text}", "--tokenizer=bpe", "--vocab-size=270", f"--out={folder}")
    assert "vocabulary of 270" in run(*command).out
    tokenizer = tinygpt.tokenizers.load(folder)
    merged = [tokenizer.decode([i]) for i in range(256, 270)]
    assert "the" in merged
    assert not any("天" in token for token in merged)  # the validation text's
    ids = tinygpt.data.open_tokens(folder / "tokens.npy")
    assert tokenizer.decode(ids) == text.read_text(encoding="utf-8")
    assert run("sample", f"--model={folder}", "--prompt=☃", "--max-new-tokens=9").out.startswith("☃")
    assert run("eval", f"--model={folder}").code == 0
    # Resumed, it is the run that was not stopped; its options may be given again, others not.
    assert run(*command, "--resume", "--steps=20").code == 0
    assert run(*command[:-1], f"--out={tmp_path / 'direct'}", "--steps=20", "--decay-steps=12").code == 0
    found, expected = outcome(folder), outcome(tmp_path / "direct")
    assert all(found[name] == expected[name] for name in expected if name.startswith(("latest m", "latest o")))
    assert_one_sentence(run(*command, "--vocab-size=271", "--resume", "--steps=20"), "--vocab-size 270, not 271")
    # A new run with characters leaves no other tokenizer behind.
    assert run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--overwrite").code == 0
    assert not (folder / "tokenizer.json").exists()
    assert not (folder / "merges.txt").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vocab-size=300"], "--vocab-size is the vocabulary size of --tokenizer bpe"),
        (["--tokenizer=byte", "--vocab-size=300"], "of --tokenizer bpe"),
        (["--tokenizer=bpe", "--vocab-size=0"], "vocab_size must be at least 257, not 0"),
        (["--tokenizer=bpe", "--vocab-size=many"], "invalid int value"),
    ],
)
def test_mistakes_with_bpe_are_one_sentence(run: Any, tmp_path: Path, options: list[str], words: str) -> None:
    text = bpe_text(tmp_path / "text.txt")
    assert_one_sentence(run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", *options), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bpe_without_its_library(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    text = bpe_text(tmp_path / "text.txt")
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", "--tokenizer=bpe")
    assert_one_sentence(answer, r"pip install tokenizers")
