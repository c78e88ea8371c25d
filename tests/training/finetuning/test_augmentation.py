"""`tinygpt finetune --augment`: training texts change from epoch to epoch, validation texts never."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import outcome
from tinygpt.cli import OptionParser
from tinygpt.cli.finetune import add_options
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training.finetuning.run import begin_finetuning

QUICK = ["--batch-size=4", "--lr=0.01", "--log-every=1", "--eval-every=4", "--warmup-steps=1", "--checkpoint-every=4"]
ALPHABET = "abcdefghijklmnopqrstuvwxyz 0123456789"

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = CharTokenizer.from_text(ALPHABET)
    config = tg.GPTConfig(tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=8)
    tg.GPT(config, seed=1).save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [f"this one is {'good' if i % 2 else 'bad'} and number {i}" for i in range(20)]
    rows = [{"text": text, "label": str(i % 2)} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def begun(base: Path, data: Path, out: Path, *options: str) -> Any:
    parser = OptionParser()
    add_options(parser)
    return begin_finetuning(parser.parse_args([f"--model={base}", f"--data={data}", f"--out={out}", *QUICK, *options]))


def ids_of(rows: Any) -> list[bytes]:
    return [example.ids.tobytes() for example in rows]


@pytest.mark.slow
def test_training_rows_change_in_each_epoch_and_validation_rows_never(base: Path, data: Path, tmp_path: Path) -> None:
    with begun(base, data, tmp_path / "plain") as run:
        plain = run.trainer.objective
        validation = ids_of(plain.validation.examples)
    with begun(base, data, tmp_path / "changed", "--augment=deletion=0.2,swap=0.2") as run:
        objective = run.trainer.objective
        batches, count = objective.batches, len(objective.batches.examples)
        assert ids_of(batches.examples) == ids_of(plain.batches.examples)
        first, second = ([batches.varied(row, epoch) for row in range(count)] for epoch in (0, 1))
        assert sum(a != b for a, b in zip(ids_of(first), ids_of(batches.examples), strict=True)) > count / 2
        assert sum(a != b for a, b in zip(ids_of(first), ids_of(second), strict=True)) > count / 2
        assert [example.label for example in first] == [example.label for example in batches.examples]
        assert ids_of(objective.validation.examples) == validation
        run.trainer.run()
        assert ids_of(objective.validation.examples) == validation
        for (ids, labels, _), (others, same, _) in zip(objective.validation, plain.validation, strict=True):
            assert np.array_equal(ids, others)
            assert np.array_equal(labels, same)


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_texts(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("good fine\nbad poor weak\n")
    options = ["--model", base, "--data", data, *QUICK, f"--augment=deletion=0.2,swap=0.2,synonyms={words}"]
    assert run("finetune", *options, "--steps=12", "--out", tmp_path / "whole").code == 0
    parts = tmp_path / "parts"
    assert run("finetune", *options, "--steps=8", "--decay-steps=12", "--out", parts).code == 0
    answer = run("finetune", "--resume", "--steps=12", "--out", parts)
    assert answer.code == 0, answer.err
    whole, again = outcome(tmp_path / "whole"), outcome(parts)
    for name in (name for name in whole if not name.endswith("state")):  # the states hold the different --steps
        assert whole[name] == again[name], name
    answer = run("finetune", "--resume", "--steps=16", "--out", parts, "--augment=deletion=0.1")
    assert_one_sentence(answer, "has the augment deletion=0.2")
    words.write_text("good fine\n")
    answer = run("finetune", "--resume", "--steps=16", "--out", parts)
    assert_one_sentence(answer, "words.txt has changed since")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("deletion=2", "deletion must be"),
        ("turn=0.1", "expected settings such as deletion=0.1"),
        ("synonyms=absent.txt", "absent.txt"),
    ],
)
def test_mistakes(run: Any, base: Path, data: Path, tmp_path: Path, option: str, sentence: str) -> None:
    answer = run("finetune", "--model", base, "--data", data, "--out", tmp_path / "out", f"--augment={option}")
    assert_one_sentence(answer, sentence)
    assert not (tmp_path / "out" / "checkpoints.json").exists()


def test_a_synonym_outside_the_vocabulary(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("good Fine\n")
    answer = run("finetune", "--model", base, "--data", data, "--out", tmp_path / "out", f"--augment=synonyms={words}")
    assert_one_sentence(answer, "the character 'F' of the synonym 'Fine'")


def test_it_is_for_labelled_texts(run: Any, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(9)))
    answer = run("finetune", "--model", base, "--data", path, "--out", tmp_path / "out", "--augment=swap=0.1")
    assert_one_sentence(answer, "--augment is for the task classify, not for the task text: leave it out")
