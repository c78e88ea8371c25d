"""tinygpt tokenize: token files made ahead, those of other programs, and runs that take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import OPTIONS, assert_same_outcome
from tinygpt import tokenizers
from tinygpt.data import open_tokens, split

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.mark.slow
def test_a_run_on_what_was_made_ahead(run: Any, text: Path, tmp_path: Path) -> None:
    ahead = tmp_path / "ahead"
    answer = run("tokenize", str(text), f"--out={ahead}")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in ahead.iterdir()) == ["text.json", "tokenizer.tinygpt.json", "tokens.npy"]
    assert answer.out.startswith(f"{ahead} holds ")
    assert run("train", str(ahead), *OPTIONS, f"--out={tmp_path / 'run'}").code == 0
    assert run("train", str(text), *OPTIONS, f"--out={tmp_path / 'direct'}").code == 0
    assert_same_outcome(tmp_path / "run", tmp_path / "direct")
    assert (ahead / "tokens.npy").read_bytes() == (tmp_path / "direct" / "tokens.npy").read_bytes()
    assert run("train", str(tmp_path / "direct"), *OPTIONS, f"--out={tmp_path / 'third'}").code == 0  # a run will do
    for data in (ahead, text):
        assert run("train", str(data), "--resume", f"--out={tmp_path / 'run'}").code == 0
    text.with_name("other.txt").write_text("other text " * 50)
    assert run("tokenize", str(text.with_name("other.txt")), f"--out={tmp_path / 'other'}").code == 0
    answer = run("train", str(tmp_path / "other"), "--resume", f"--out={tmp_path / 'run'}")
    assert_one_sentence(answer, "uses a different text than")
    answer = run("train", str(ahead), "--tokenizer=byte", *OPTIONS, f"--out={tmp_path / 'fourth'}")
    assert_one_sentence(answer, "are encoded already, with their own tokenizer: leave out --tokenizer")
    tokens = np.load(ahead / "tokens.npy")
    tokens[7] = 999
    np.save(ahead / "tokens.npy", tokens)
    answer = run("train", str(ahead), *OPTIONS, f"--out={tmp_path / 'fourth'}")
    assert_one_sentence(answer, r"the token file .*tokens\.npy has the id 999 at position 7, but a vocabulary of")
    assert not (tmp_path / "fourth").exists()


@pytest.mark.parametrize("format", ["nanogpt", "llm.c"])
def test_bins_and_back(run: Any, text: Path, tmp_path: Path, format: str) -> None:
    bins, back = tmp_path / "bins", tmp_path / "back"
    assert run("tokenize", str(text), "--tokenizer=byte", f"--format={format}", f"--out={bins}").code == 0
    assert {"train.bin", "val.bin"} <= {path.name for path in bins.iterdir()}
    both = [str(bins / "train.bin"), str(bins / "val.bin")]
    answer = run("tokenize", *both, f"--tokenizer={bins}", f"--out={back}")
    assert answer.code == 0, answer.err
    parts = split(open_tokens(back / "tokens.npy"), 0.1)
    assert b"".join(bytes(part.astype("u1")) for part in parts) == text.read_bytes()
    assert tokenizers.load(back) == tokenizers.ByteTokenizer()
    assert run("train", str(back), *OPTIONS, f"--out={tmp_path / 'run'}").code == 0
    answer = run("tokenize", both[0], "--vocab-size=256", "--format=nanogpt", f"--out={tmp_path / 'one'}")
    assert answer.code == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["train.bin"]
    for arguments, words in (
        (both[:1], "must be given with --vocab-size"),
        ([both[0], "--vocab-size=50"], r"has the id \d+ at position \d+, but a vocabulary of 50"),
        ([*both, both[0], "--vocab-size=256"], "takes one .bin, or one for training and one for validation, not 3"),
        ([*both, f"--tokenizer={bins}", "--vocab-size=9"], "has 256 tokens, not 9"),
    ):
        assert_one_sentence(run("tokenize", *arguments, f"--out={tmp_path / 'new'}"), words)
        assert not (tmp_path / "new").exists()


def test_mistakes(run: Any, text: Path, tmp_path: Path) -> None:
    out = f"--out={tmp_path / 'out'}"
    assert_one_sentence(run("tokenize", out), "tokenize needs texts")
    assert_one_sentence(run("tokenize", str(tmp_path / "absent"), out), "cannot read .*absent")
    assert_one_sentence(run("tokenize", str(text), "--validation-fraction=1", out), "must be above 0 and below 1")
    assert_one_sentence(run("tokenize", str(text), f"--out={text.parent}"), "already exists and is not empty")
    assert not (tmp_path / "out").exists()
