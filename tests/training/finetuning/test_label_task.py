"""`tinygpt finetune` on texts with labels: a classifier in every command and in transformers' layout; folds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tinygpt import GPTForSequenceClassification
from tinygpt.data.labelled import LabelledExamples, collate_labelled
from tinygpt.data.rows import Row
from tinygpt.interop.classifier import load_with_tokenizer
from tinygpt.tokenizers import ByteTokenizer
from tinygpt.training import CheckpointFolder, TrainingConfig, read_metrics
from tinygpt.training.finetuning.label_task import BALANCED, LabelTask
from tinygpt.training.finetuning.task_options import TaskOptions

QUICK = ["--steps=20", "--batch-size=8", "--lr=0.02", "--log-every=10", "--eval-every=10", "--warmup-steps=2"]

pytestmark = pytest.mark.usefixtures("without_picture")


def rows(count: int = 40) -> list[dict[str, str]]:
    """Reviews whose label is in their first word; every third is "neg"."""
    texts = [("bad" if i % 3 == 0 else "good") + f" number {i}" for i in range(count)]
    return [{"text": text, "label": "neg" if text.startswith("bad") else "pos"} for text in texts]


def write_csv(path: Path, content: list[dict[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "reviews.csv", rows())


def test_two_commands_from_a_csv_to_a_confusion_matrix(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "clf"
    answer = run("finetune", "--model", base, "--data", data, "--out", out, *QUICK, "--steps=60", "--lr=0.01")
    assert answer.code == 0, answer.err
    assert "classify, 36 rows to train on" in answer.out
    assert f" eval --model {out}" in answer.out
    records = [record for record in read_metrics(out / "metrics.jsonl") if "validation_loss" in record]
    assert records[-1]["accuracy"] == 1.0
    assert records[-1]["macro_f1"] == 1.0
    answer = run("eval", "--model", out, "--data", data, "--json", tmp_path / "r.json")
    assert answer.code == 0, answer.err
    assert "true \\ predicted" in answer.out
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["accuracy"] == 1.0
    assert figures["labels"] == ["neg", "pos"]
    answer = run("predict", "--model", out, "--data", data)
    assert [json.loads(line)["prediction"] for line in answer.out.splitlines()] == [row["label"] for row in rows()]


@pytest.mark.slow
def test_the_folder_is_a_run_and_a_directory_of_transformers_with_the_same_weights(
    run: Any, base: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clf"
    assert run("finetune", "--model", base, "--data", data, "--out", out, *QUICK).code == 0
    ours, _ = load_with_tokenizer(out)
    best = CheckpointFolder(out).load("best").model
    assert best.keys() == ours.state_dict().keys()
    for name, array in ours.state_dict().items():
        assert np.array_equal(array, best[name]), name
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (plain / name).write_bytes((out / name).read_bytes())
    again = GPTForSequenceClassification.from_pretrained(plain)
    assert again.label_names == ours.label_names == ["neg", "pos"]
    for name, array in ours.state_dict().items():
        assert np.array_equal(array, again.state_dict()[name]), name
    latest = GPTForSequenceClassification.from_pretrained(out, checkpoint="latest")
    assert np.array_equal(latest.score.weight.data, CheckpointFolder(out).load("latest").model["score.weight"])
    words = (
        r"^[^:]+: \S+ holds a classifier, as 'score\.weight' says, .*: give it to `tinygpt eval` or `predict`, or load"
    )
    assert_one_sentence(run("sample", "--model", out), words)


def test_the_first_evaluation_is_that_of_the_new_head(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    valid = write_csv(tmp_path / "valid.csv", rows(9))
    out = tmp_path / "clf"
    assert run("finetune", "--model", base, "--data", data, "--valid", valid, "--out", out, *QUICK).code == 0
    first = next(record for record in read_metrics(out / "metrics.jsonl") if "validation_loss" in record)
    clf = GPTForSequenceClassification.from_pretrained(base, label_names=["neg", "pos"], seed=1337)
    maker = LabelledExamples(ByteTokenizer(), 16, ["neg", "pos"])
    ids, labels, lengths = collate_labelled([maker.make(Row(row, "")) for row in rows(9)])
    assert first["step"] == 0
    assert abs(first["validation_loss"] - np.log(2)) < 0.2
    assert clf.loss(ids, labels, lengths).item() == pytest.approx(np.log(2), abs=0.2)


@pytest.mark.slow
def test_a_resumed_run_comes_to_the_same_weights(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    options = ["--model", base, "--data", data, *QUICK, "--checkpoint-every=10", "--label-smoothing=0.1",
               "--class-weights=balanced"]  # fmt: skip
    assert run("finetune", *options, "--out", tmp_path / "whole").code == 0
    half = [option if option != "--steps=20" else "--steps=10" for option in options]
    assert run("finetune", *half, "--decay-steps=20", "--out", tmp_path / "parts").code == 0
    answer = run("finetune", "--resume", "--out", tmp_path / "parts", "--steps=20")
    assert answer.code == 0, answer.err
    whole, parts = (CheckpointFolder(tmp_path / name).load("latest").model for name in ("whole", "parts"))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)
    assert_one_sentence(
        run("finetune", "--resume", "--out", tmp_path / "parts", "--label-smoothing=0.2"), "has the label_smoothing 0.1"
    )
    write_csv(data, rows(41))
    assert_one_sentence(run("finetune", "--resume", "--out", tmp_path / "parts", "--steps=30"), "has changed since")


def test_frozen_and_with_the_names_of_the_model_inside(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "clf"
    answer = run("finetune", "--model", base, "--data", data, "--out", out, "--freeze=wte,wpe,h.0,ln_f", *QUICK)
    assert answer.code == 0, answer.err
    before = tg.GPT.from_pretrained(base).state_dict()
    after = CheckpointFolder(out).load("latest").model
    for name, array in before.items():
        assert np.array_equal(array, after[f"transformer.{name}"]), name
    assert "32 of them trained" in answer.out


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_any_split_into_micro_batches_has_the_gradient_of_the_whole(parts: int) -> None:
    """With class weights too, where a mean of the parts' means would be another loss."""
    body = tg.GPT(tg.GPTConfig(256, 16, 1, 2, 16), seed=2, dtype=np.float64)
    content = rows(10)
    options = TaskOptions(("text", "label"), labels=["neg", "pos"], label_smoothing=0.1, class_weights=BALANCED)
    task = LabelTask(options, body, ByteTokenizer())
    examples = [task.maker.make(Row(row, "")) for row in content]
    objective = task.objective(examples, examples, TrainingConfig(steps=1))
    clf = task.model_on(body)

    def gradients(groups: list[Any]) -> dict[str, np.ndarray]:
        clf.zero_grad()
        batches = [collate_labelled(group) for group in groups]
        total = sum(map(objective.count, batches))
        for batch in batches:
            (objective.loss(clf, *batch) * (objective.count(batch) / total)).backward()
        return {name: parameter.grad.copy() for name, parameter in clf.named_parameters()}

    whole = gradients([examples])
    split = gradients([examples[i::parts] for i in range(parts)])
    for name, gradient in whole.items():
        np.testing.assert_allclose(split[name], gradient, rtol=0, atol=1e-12, err_msg=name)
    figures = objective.evaluate(clf, [collate_labelled(examples[i::parts]) for i in range(parts)])
    with clf.evaluating():
        assert figures["validation_loss"] == pytest.approx(clf.loss(*collate_labelled(examples)).item())


@pytest.mark.slow
def test_folds(run: Any, base: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "reviews.csv", [*rows(20), *rows(4)])  # some texts twice
    out = tmp_path / "cv"
    options = ["--folds=3", *QUICK, "--watch-layers=1"]
    answer = run("finetune", "--model", base, "--data", data, "--out", out, *options)
    assert answer.code == 0, answer.err
    for number in (1, 2, 3):  # each fold is a run that can be watched
        records = list(read_metrics(out / f"fold-{number}" / "metrics.jsonl"))
        assert sum("layers" in record for record in records) == max(record["step"] for record in records) > 0
    report = json.loads((out / "folds.json").read_text())
    assert len(report["folds"]) == 3
    assert sum(fold["rows"] for fold in report["folds"]) == report["all_rows"]["rows"] == 24
    accuracies = [fold["accuracy"] for fold in report["folds"]]
    assert report["accuracy"] == pytest.approx([np.mean(accuracies), np.std(accuracies, ddof=1)])
    assert "24 rows, each tested once in 3 folds" in answer.out
    assert "accuracy" in answer.out
    assert load_with_tokenizer(out / "fold-3")[0].label_names == ["neg", "pos"]


@pytest.mark.slow
def test_folds_of_before_go_with_their_number(run: Any, base: Path, tmp_path: Path) -> None:
    """Those of an earlier cross-validation alone, only when the new one is done, and only the files of the run."""
    data, out = write_csv(tmp_path / "reviews.csv", rows(20)), tmp_path / "cv"
    command = ["finetune", "--model", base, "--data", data, "--out", out, *QUICK, "--steps=2"]
    assert run(*command, "--folds=5").code == 0
    (out / "fold-4" / "notes.txt").write_text("mine")
    assert run(*command, "--out", out / "fold-9").code == 0  # a run of the user's own
    (out / "fold-7").mkdir()
    for folder in ("fold-1", "fold-2"):  # nothing else is in the way
        shutil.rmtree(out / folder)
    words = "cv/fold-3 holds a fold of an earlier cross-validation, which had more of them: choose another --out"
    assert_one_sentence(run(*command, "--folds=2"), words)
    assert not (out / "fold-1").exists()
    assert_one_sentence(run(*command, "--folds=2", "--overwrite", "--lr=-1"), "lr must be")
    assert (out / "fold-5" / "data.json").exists()
    answer = run(*command, "--folds=2", "--overwrite")
    assert answer.code == 0, answer.err
    names = {path.name for path in out.iterdir()}
    assert names == {"fold-1", "fold-2", "fold-4", "fold-7", "fold-9", "folds.json"}
    assert [path.name for path in (out / "fold-4").iterdir()] == ["notes.txt"]
    assert (out / "fold-9" / "data.json").exists()


@pytest.mark.slow
def test_what_stands_in_the_columns_is_said(run: Any, base: Path, tmp_path: Path) -> None:
    """A label written in two ways, a text with two labels, a column that nobody reads."""
    content = [*rows(20), {"text": "Bad number 0", "label": "Neg"}, {"text": "bad  number 0", "label": "pos"}]
    data = write_csv(tmp_path / "reviews.csv", content)
    answer = run("finetune", "--model", base, "--data", data, "--out", tmp_path / "a", *QUICK)
    assert answer.code == 0, answer.err
    assert "labels: 'Neg' 1, 'neg' 7, 'pos' 14;\n       1 text has more than one label;" in answer.out
    data.write_text(data.read_text(encoding="utf-8").replace("text,label", "text,sentiment"), encoding="utf-8")
    answer = run("finetune", "--model", base, "--data", data, "--out", tmp_path / "b", *QUICK)
    assert "text, 20 rows to train on;\n       not read: the column 'sentiment'; labels are read from" in answer.out


@pytest.mark.slow
def test_rare_labels_are_said(run: Any, base: Path, tmp_path: Path) -> None:
    """One with a single text, which is for training alone; and one that not every fold can test."""
    content = [*rows(20), {"text": "x", "label": "odd"}]
    data = write_csv(tmp_path / "reviews.csv", content)
    answer = run("finetune", "--model", base, "--data", data, "--out", tmp_path / "a", *QUICK)
    assert answer.code == 0, answer.err
    assert "too rare for a validation row: 'odd' (1 of 21 rows)" in answer.out
    data = write_csv(tmp_path / "more.csv", [*content, {"text": "y", "label": "odd"}])
    answer = run("finetune", "--model", base, "--data", data, "--out", tmp_path / "b", "--folds=3", *QUICK)
    assert answer.code == 0, answer.err
    assert answer.out.count("too rare for a validation row: 'odd' (2 of 22 rows)") == 1


def test_a_run_that_held_out_other_rows_is_not_evaluated_on_what_it_learned(
    run: Any, base: Path, data: Path, tmp_path: Path
) -> None:
    """As one was by an earlier version, whose folder has no digest of them."""
    out = tmp_path / "clf"
    assert run("finetune", "--model", base, "--data", data, "--out", out, *QUICK).code == 0
    assert run("eval", "--model", out).code == 0
    facts = json.loads((out / "data.json").read_text())
    for digest in ("0" * 64, None):
        facts["sha256"]["validation rows"] = digest
        (out / "data.json").write_text(json.dumps({**facts, "sha256": {k: v for k, v in facts["sha256"].items() if v}}))
        words = "was made by a version of tinygpt that chose other validation rows: start a new run, or evaluate"
        assert_one_sentence(run("eval", "--model", out), words)
        assert_one_sentence(run("finetune", "--resume", "--out", out, "--steps=30"), words)
    assert run("eval", "--model", out, "--data", data).code == 0


@pytest.mark.slow
def test_a_small_file_is_split_so_that_both_parts_have_both_labels(run: Any, base: Path, tmp_path: Path) -> None:
    content = [{"text": f"{'good' if i % 2 else 'bad'} {i}", "label": "pn"[i % 2]} for i in range(30)]
    data = write_csv(tmp_path / "reviews.csv", content)
    for seed in range(3):
        options = ["--out", tmp_path / f"{seed}", f"--seed={seed}", *QUICK]
        assert run("finetune", "--model", base, "--data", data, *options).code == 0


def test_a_label_that_only_validation_has_is_an_error() -> None:
    labelled = [Row({"text": "x", "label": name}, "") for name in ("neg", "pos", "rare")]
    options = TaskOptions(("text", "label"), rows=lambda: labelled)
    task = LabelTask(options, tg.GPT(tg.GPTConfig(256, 16, 1, 2, 16)), ByteTokenizer())
    train = [task.maker.make(Row(row, "")) for row in rows(6)]
    other = task.maker.make(Row({"text": "x", "label": "rare"}, ""))
    with pytest.raises(tg.UsageError, match="the label 'rare' has no rows to train on, only for validation"):
        task.objective(train, [other, train[0]], TrainingConfig(steps=1))


@pytest.mark.slow
def test_mistakes(run: Any, base: Path, data: Path, tmp_path: Path) -> None:
    def refused(words: str, *options: Any, file: Path = data) -> None:
        answer = run("finetune", "--model", base, "--data", file, "--out", tmp_path / "out", *QUICK, *options)
        assert_one_sentence(answer, words)
        assert not (tmp_path / "out" / "checkpoints.json").exists()

    refused("--template is for prompts with answers", "--template=plain")
    refused(
        "f.csv: folds: 25 folds need at least 25 different texts",
        "--folds=25",
        file=write_csv(tmp_path / "f.csv", rows(24)),
    )
    refused("folds must be at least 2", "--folds=1")
    refused("finetune: folds must be at least 2, not 0", "--folds=0")
    refused("f.csv: one of 20 folds has 1 rows, all of one label", "--folds=20", file=tmp_path / "f.csv")
    once = write_csv(tmp_path / "once.csv", [*rows(12), {"text": "x", "label": "rare"}])
    refused("once.csv: one of 3 folds has all rows of a label", "--folds=3", file=once)
    assert not (tmp_path / "out" / "fold-1").exists()
    refused("finetune: validation_fraction must be above 0", "--validation-fraction=0")
    refused("--folds makes its own validation rows", "--folds=2", "--valid", data)
    refused("label_smoothing must be at least 0 and below 1", "--label-smoothing=1")
    refused("training: batch_size must be at least 1, not 0", "--batch-size=0")
    refused("training: gradient_accumulation must be at least 1, not 0", "--gradient-accumulation=0")
    refused(r"^[^:]+: a seed is an integer from 0 to 2\*\*64 - 1, not -1", "--seed=-1")
    one = write_csv(tmp_path / "one.csv", [row for row in rows() if row["label"] == "pos"])
    refused(
        r"one\.csv: classification needs rows of at least two labels in the column 'label'; there is only 'pos'",
        file=one,
    )
    valid = write_csv(tmp_path / "valid.csv", [row for row in rows(9) if row["label"] == "pos"])
    refused(r"valid\.csv: the 6 validation rows all have the label 'pos'", "--valid", valid)
    nothing = write_csv(tmp_path / "nothing.csv", [])
    refused(r"there is no row in \S+nothing\.csv to validate on$", "--valid", nothing)
    two = write_csv(tmp_path / "two.csv", rows(2))
    refused(r"two\.csv: the label 'pos' has no rows to train on", file=two)
    quotes = tmp_path / "quotes.csv"
    quotes.write_text('text,label\na,neg\n"b \\"c\\"",pos\n')
    mended = (
        r"line 3: this is not a row: ',' expected after '\"': a quotation mark inside a quoted field must be doubled"
    )
    refused(rf"^[^:]+: {quotes}, {mended}$", file=quotes)  # the file is named once
    other = write_csv(tmp_path / "other.csv", [*rows(3), {"text": "x", "label": "unsure"}])
    refused("other.csv, line 5: the label 'unsure' is not one of the model's 2", "--valid", other)
    empty = write_csv(tmp_path / "empty.csv", [*rows(3), {"text": "x", "label": ""}])
    refused("empty.csv, line 5: the column 'label' is empty", file=empty)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(20)))
    refused("--class-weights is for the task classify, not for the task text", "--class-weights=balanced", file=texts)
    refused("--folds is for the task classify, not for the task text", "--folds=2", file=texts)
