"""Fine-tuning that goes on: from a classifier, with an adapter beside its head; what a stopped run leaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.training.finetuning.test_label_task import QUICK, rows, write_csv
from tinygpt import GPTForSequenceClassification
from tinygpt.interop.classifier import load_with_tokenizer
from tinygpt.nn.lora import lora_of
from tinygpt.tokenizers import ByteTokenizer
from tinygpt.training import CheckpointFolder, pretrained, read_metrics

pytestmark = pytest.mark.usefixtures("without_picture")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A directory of a classifier of three labels."""
    folder = tmp_path_factory.mktemp("classifier")
    clf = GPTForSequenceClassification(tg.GPT.from_pretrained(base), 3, label_names=["neg", "other", "pos"], seed=5)
    clf.score.weight.data[...] = np.random.default_rng(3).standard_normal(clf.score.weight.shape)
    clf.problem_type = "single_label_classification"
    clf.save_pretrained(folder, tokenizer=ByteTokenizer())
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "reviews.csv", rows())


def first_loss(folder: Path) -> float:
    return float(next(record["validation_loss"] for record in read_metrics(folder / "metrics.jsonl")
                      if "validation_loss" in record))  # fmt: skip


# From a classifier ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_classifier_goes_on_with_its_head_and_labels(run: Any, classifier: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("finetune", "--model", classifier, "--data", data, "--valid", data, *QUICK)
    answer = run(*command, "--out", out)
    assert answer.code == 0, answer.err
    run("eval", "--model", classifier, "--data", data, "--json", tmp_path / "r.json")
    assert first_loss(out) == pytest.approx(json.loads((tmp_path / "r.json").read_text())["loss"], rel=1e-5)
    clf, _ = load_with_tokenizer(out)
    assert clf.label_names == ["neg", "other", "pos"]  # though no row is of "other"
    assert json.loads((out / "config.json").read_text())["id2label"]["1"] == "other"
    # A run of a classifier is one too, and a resumed run comes to the same weights.
    assert run(*command[:2], out, *command[3:], "--out", tmp_path / "next").code == 0
    best = CheckpointFolder(out).entry("best")["step"]
    losses = {r["step"]: r["validation_loss"] for r in read_metrics(out / "metrics.jsonl") if "validation_loss" in r}
    assert first_loss(tmp_path / "next") == pytest.approx(losses[best], rel=1e-5)
    assert run(*command, "--steps=10", "--decay-steps=20", "--out", tmp_path / "half").code == 0
    assert run("finetune", "--resume", "--steps=20", "--out", tmp_path / "half").code == 0
    ours, theirs = (CheckpointFolder(folder).load("latest").model for folder in (tmp_path / "half", out))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_what_a_classifier_is_not_for(run: Any, classifier: Path, data: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a b"}\n{"text": "c d"}\n', encoding="utf-8")
    out = ("--out", tmp_path / "run")
    answer = run("finetune", "--model", classifier, "--data", texts, *QUICK, *out)
    assert_one_sentence(answer, "a classifier, which has no head for the task text: give rows with .* text and label")
    write_csv(data, [*rows(), {"text": "so so", "label": "mixed"}])
    answer = run("finetune", "--model", classifier, "--data", data, *QUICK, *out)
    assert_one_sentence(answer, "line 42: the label 'mixed' is not one of the model's 3: 'neg', 'other', 'pos'")
    write_csv(data, rows())
    answer = run("finetune", "--model", classifier, "--data", data, *QUICK, *out, "--class-weights=balanced")
    assert_one_sentence(answer, "the label 'other' has no rows to train on")
    clf = GPTForSequenceClassification.from_pretrained(classifier)
    clf.problem_type = "multi_label_classification"
    clf.save_pretrained(tmp_path / "multi", tokenizer=ByteTokenizer())
    answer = run("finetune", "--model", tmp_path / "multi", "--data", data, *QUICK, *out, "--label-kind=single")
    assert_one_sentence(answer, "a classifier for multi_label_classification, which reads labels as multi: leave out")
    answer = run("finetune", "--model", tmp_path / "multi", "--data", data, *QUICK, "--out", tmp_path / "goes on")
    assert answer.code == 0, answer.err  # its labels are one name each, which is a list of one
    assert GPTForSequenceClassification.from_pretrained(tmp_path / "goes on").problem_type == clf.problem_type
    answer = run("train", "--init-from", classifier, "--data", texts, *out)
    assert_one_sentence(answer, "holds a classifier")
    assert not (tmp_path / "run").exists()


# LoRA -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_adapter_beside_a_new_head(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("finetune", "--model", base, "--data", data, "--valid", data, *QUICK, "--lora-rank=2",
               "--lora-dropout=0.1")  # fmt: skip
    answer = run(*command, "--out", out)
    assert answer.code == 0, answer.err
    trained = 2 * (16 + 48) + 2 * 16  # c_attn's A and B; the head
    assert f"{trained} of them trained" in answer.out
    before, latest = tg.GPT.from_pretrained(base).state_dict(), CheckpointFolder(out).load("latest").model
    for name, array in before.items():  # the base stays as it was
        there = f"transformer.{name}" if "c_attn" not in name else f"transformer.{name}".replace(
            "c_attn.", "c_attn.base_layer.")  # fmt: skip
        np.testing.assert_array_equal(array, latest[there], err_msg=name)
    assert np.abs(latest["transformer.h.0.attn.c_attn.lora_B"]).max() > 0
    losses = {r["step"]: r["validation_loss"] for r in read_metrics(out / "metrics.jsonl") if "validation_loss" in r}
    clf, _ = load_with_tokenizer(out)
    assert lora_of(clf) is not None
    run("eval", "--model", out, "--data", data, "--json", tmp_path / "r.json")
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["loss"] == pytest.approx(min(losses.values()), rel=1e-4)
    # What it leaves for others is merged, and says the same of every row.
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", WEIGHTS, "generation_config.json", "tokenizer.tinygpt.json"):
        (plain / name).write_bytes((out / name).read_bytes())
    ours, merged = (run("predict", "--model", folder, "--data", data).out.splitlines() for folder in (out, plain))
    assert lora_of(load_with_tokenizer(plain)[0]) is None
    for one, other in zip(ours, merged, strict=True):
        assert json.loads(one)["prediction"] == json.loads(other)["prediction"]
        assert json.loads(one)["score"] == pytest.approx(json.loads(other)["score"], abs=1e-5)
    assert run(*command, "--steps=10", "--decay-steps=20", "--out", tmp_path / "half").code == 0
    assert run("finetune", "--resume", "--steps=20", "--out", tmp_path / "half").code == 0
    half = CheckpointFolder(tmp_path / "half").load("latest").model
    for name, array in half.items():
        np.testing.assert_array_equal(array, latest[name], err_msg=name)


def test_an_adapter_on_a_classifier(run: Any, classifier: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("finetune", "--model", classifier, "--data", data, "--valid", data, *QUICK, "--lora-rank=2")
    assert run(*command, "--out", out).code == 0
    run("eval", "--model", classifier, "--data", data, "--json", tmp_path / "r.json")
    assert first_loss(out) == pytest.approx(json.loads((tmp_path / "r.json").read_text())["loss"], rel=1e-5)
    before, after = (GPTForSequenceClassification.from_pretrained(folder).score.weight for folder in (classifier, out))
    assert not np.array_equal(before.data, after.data)


# What is left ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_run_leaves_no_older_weights(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("finetune", "--model", base, "--data", data, *QUICK, "--lr=0.003", "--checkpoint-every=5")
    assert run(*command, "--out", out).code == 0
    older = (out / WEIGHTS).read_bytes()
    # Another run in its place, stopped before and after its first checkpoint.
    for stop_at, there in ((0, True), (7, False)):
        with stopping_at(stop_at):
            answer = run(*command, "--seed=8", "--overwrite", "--out", out)
        assert answer.code == 130, answer.err
        assert (out / WEIGHTS).exists() == there
        assert not there or (out / WEIGHTS).read_bytes() == older
    assert run("finetune", "--resume", "--out", out).code == 0
    assert_exported_best(out)
    # The same run continued and stopped: the best weights of now, or none.
    assert run("finetune", "--resume", "--steps=40", "--eval-every=5", "--out", out).code == 0
    before = CheckpointFolder(out).entry("best")["step"]
    with stopping_at(57):
        assert run("finetune", "--resume", "--steps=60", "--lr=0.02", "--out", out).code == 130
    if CheckpointFolder(out).entry("best")["step"] == before:
        assert_exported_best(out)
    else:
        assert not (out / WEIGHTS).exists()
    assert run("predict", "--model", out, "--data", data).code == 0  # the checkpoints are whole


def assert_exported_best(out: Path) -> None:
    plain = out.parent / f"plain-{len(list(out.parent.iterdir()))}"
    plain.mkdir()
    for name in ("config.json", WEIGHTS):
        (plain / name).write_bytes((out / name).read_bytes())
    found = GPTForSequenceClassification.from_pretrained(plain).state_dict()
    for name, array in CheckpointFolder(out).load("best").model.items():
        np.testing.assert_array_equal(array, found[name], err_msg=name)


class stopping_at(pytest.MonkeyPatch):
    """Ctrl-C before the batch of this step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def __enter__(self) -> None:
        from tinygpt.data.row_batches import RowBatches

        batch = RowBatches.batch

        def stop(batches: Any, index: int) -> Any:
            if index == self.step:
                os.kill(os.getpid(), signal.SIGINT)
            return batch(batches, index)

        self.setattr(RowBatches, "batch", stop)

    def __exit__(self, *exception: object) -> None:
        self.undo()


# A revision -----------------------------------------------------------------------------------------


def test_the_revision_of_a_name(run: Any, base: Path, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[tuple[str, str]] = []
    find = pretrained.interop.find_model

    def found(name: Any, revision: str = "main") -> Path:
        asked.append((str(name), revision))
        return Path(find(base if str(name) == "some/model" else name, "main"))

    for module in (pretrained.interop, pretrained.interop.loading, pretrained.interop.classifier):
        monkeypatch.setattr(module, "find_model", found)
    monkeypatch.setattr(pretrained.interop.loading, "find_here", lambda name, revision: base)
    text = tmp_path / "text.txt"
    text.write_text("some words of a text\n" * 40, encoding="utf-8")
    name, quick = ("some/model", "--revision", "v2"), ("--steps=2", "--batch-size=2", "--eval-batches=1")
    assert run("finetune", "--model", *name, "--data", data, *quick, "--out", tmp_path / "a").code == 0
    assert run("train", str(text), "--init-from", *name, *quick, "--out", tmp_path / "b").code == 0
    assert {revision for what, revision in asked if what == "some/model"} == {"v2"}
    answer = run("finetune", "--resume", "--revision=v2", "--out", tmp_path / "a")
    assert_one_sentence(answer, "leave out --revision")
    answer = run("train", str(text), "--revision=v2", "--out", tmp_path / "c")
    assert_one_sentence(answer, "--revision selects a version of the model in --init-from: give both, or neither")
    answer = run("train", "--resume", "--revision=v2", "--out", tmp_path / "b")
    assert_one_sentence(answer, "leave out --revision")
