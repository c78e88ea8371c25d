"""`tinygpt train --tokenizer word`: the words of the training part, unknown ones counted, and a run that resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.helpers import Answer, assert_one_sentence
from tinygpt import interop, tokenizers
from tinygpt.data import open_tokens

Run = Callable[..., Answer]
SIZES = ("--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8", "--batch-size=2", "--eval-every=2")


def test_a_run_with_words(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat, and the dog sat on the cat.\n" * 30 + "Zebras! " * 40, encoding="utf-8")
    out = tmp_path / "run"
    train = ("train", f"--data={text}", f"--out={out}", "--tokenizer=word", *SIZES)
    answer = run(*train, "--vocab-size=12", "--steps=2")
    assert answer.code == 0, answer.err
    tokenizer = tokenizers.load(out)
    assert isinstance(tokenizer, tokenizers.WordTokenizer)
    assert tokenizer.vocab_size == 12
    assert "Zebras" not in tokenizer.words  # the validation part has no say
    tokens = open_tokens(out / "tokens.npy")
    count = tokenizer.unknown_count(tokens)
    assert f"{len(tokens):,} tokens, {count:,} of them unknown words ({count / len(tokens):.1%})" in answer.out
    answer = run("train", "--resume", f"--out={out}", "--steps=3")
    assert answer.code == 0, answer.err
    answer = run("sample", "--model", str(out), "--prompt", "the cat sat", "--max-new-tokens", "4", "--seed", "1")
    assert answer.out.startswith("the cat sat"), answer.err
    model, again = interop.load(out)
    assert again == tokenizer
    assert model.config.vocab_size == 12


@pytest.mark.slow
def test_documents_end_with_a_token_of_their_own(run: Run, tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("The cat sat on the mat, and the dog sat on the cat.\n" * 5)
    out = tmp_path / "run"
    answer = run(
        "train", str(tmp_path / "*.txt"), f"--out={out}", "--tokenizer=word", *SIZES, "--steps=2", "--vocab-size=12"
    )
    assert answer.code == 0, answer.err
    tokenizer = tokenizers.load(out)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (12, 11)
    assert (open_tokens(out / "tokens.npy") == 11).sum() == 9


@pytest.mark.slow
def test_a_run_that_begins_with_word_vectors(run: Run, tmp_path: Path) -> None:
    text, vectors, out = tmp_path / "text.txt", tmp_path / "vectors.txt", tmp_path / "run"
    text.write_text("The cat sat on the mat, and the dog sat on the cat.\n" * 30, encoding="utf-8")
    vectors.write_text("2 4\ncat 1 2 3 4\nthe 5 6 7 8\n")
    train = ("train", f"--data={text}", f"--out={out}", "--tokenizer=word", *SIZES, f"--word-vectors={vectors}")
    assert_one_sentence(run(*train, "--steps=1"), "have 4 numbers, and the model has 8 channels: project them")
    assert_one_sentence(run(*train[:-1], "--project"), "--project is for the vectors of --word-vectors")
    assert not out.exists() or not any(out.iterdir())
    answer = run(*train, "--project", "--steps=1", "--lr=1e-9", "--min-lr=0")
    assert answer.code == 0, answer.err
    assert "Vectors: 3 of 10 words have a vector (30.0%), 1 of them in lower case" in answer.out
    model, tokenizer = interop.load(out)
    (number,) = tokenizer.encode("cat")
    assert model.wte.weight.data[number, :4].round(4).tolist() == [1, 2, 3, 4]
    assert_one_sentence(run("train", "--resume", f"--out={out}", f"--word-vectors={vectors}"), "begins a new model")


def test_mistakes(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f " * 3 + "x" * 100)
    train = ("train", f"--data={text}", f"--out={tmp_path / 'run'}", *SIZES)
    assert_one_sentence(run(*train, "--tokenizer=word", "--vocab-size=2"), "vocab_size must be at least 4")
    assert_one_sentence(
        run(*train, "--vocab-size=30"), "--vocab-size is the vocabulary size of --tokenizer bpe or word"
    )
