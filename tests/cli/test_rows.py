"""`tinygpt eval` and `predict` with a classifier: figures, files, and what is wrong with rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tinygpt import metrics
from tinygpt.interop.classifier import load_with_tokenizer
from tinygpt.tokenizers import ByteTokenizer

TEXTS = ["good", 'bad, "really"', "so good\nit is", "bad", "好", "a text that is longer than the block of the model"]
LABELS = ["pos", "neg", "pos", "neg", "pos", "neg"]
SIZES = tg.GPTConfig(vocab_size=257, block_size=16, n_layer=1, n_head=2, n_embd=16)


def save(folder: Path, names: Any = ("neg", "pos"), problem: str | None = None) -> Path:
    clf = tg.GPTForSequenceClassification(SIZES, len(names), problem, label_names=names, seed=1)
    rng = np.random.default_rng(2)
    for parameter in clf.parameters():
        parameter.data[...] += 0.2 * rng.standard_normal(parameter.shape)
    clf.save_pretrained(folder, tokenizer=ByteTokenizer())
    return folder


def write_rows(path: Path, rows: Any = None) -> Path:
    rows = [{"text": t, "label": label} for t, label in zip(TEXTS, LABELS, strict=True)] if rows is None else rows
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("clf"))


def predictions(folder: Path) -> list[str]:
    """What the model says of TEXTS one by one."""
    clf, tokenizer = load_with_tokenizer(folder)
    return [clf.label_names[int(clf.predict(tokenizer.encode(text)[None, :16])[0])] for text in TEXTS]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_eval_of_labelled_rows(run: Any, folder: Path, tmp_path: Path, kind: str) -> None:
    data = write_rows(tmp_path / f"reviews.{kind}")
    report, lines = tmp_path / "report.json", tmp_path / "lines.jsonl"
    answer = run("eval", "--model", folder, "--data", data, "--json", report, "--predictions", lines, "--batch-size=4")
    assert answer.code == 0, answer.err
    found = predictions(folder)
    figures = json.loads(report.read_text(encoding="utf-8"))
    assert figures["accuracy"] == metrics.accuracy(found, LABELS)
    assert figures["macro_f1"] == metrics.f1(found, LABELS)
    assert figures["confusion_matrix"] == metrics.confusion_matrix(found, LABELS, ["neg", "pos"]).tolist()
    assert (figures["rows"], figures["truncated"], figures["majority"]) == (6, 1, 0.5)
    written = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in written] == TEXTS
    assert [line["label"] for line in written] == LABELS
    assert [line["prediction"] for line in written] == found
    loss = -np.mean([np.log(line["scores"][line["label"]]) for line in written])
    assert figures["loss"] == pytest.approx(loss)
    assert all(line["score"] == max(line["scores"].values()) for line in written)
    assert "6 rows; 1 of them cut to the model's 16 tokens" in answer.out
    assert f"accuracy {figures['accuracy']:.4f}" in answer.out
    matrix = answer.out.split("true \\ predicted")[1]
    assert matrix.split()[:2] == ["neg", "pos"]
    assert [int(word) for word in matrix.split() if word.isdigit()] == [
        count for row in figures["confusion_matrix"] for count in row
    ]


def test_predict_labels_a_table_or_the_lines_of_a_text(run: Any, folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "new.csv", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    answer = run("predict", "--model", folder, "--data", data, "--out", tmp_path / "out.jsonl")
    assert answer.code == 0, answer.err
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["prediction"] for line in written] == predictions(folder)
    assert [line["id"] for line in written] == list("012345")
    (tmp_path / "lines.txt").write_text("good\n\n bad \n好\n", encoding="utf-8")
    answer = run("predict", "--model", folder, "--data", tmp_path / "lines.txt")
    written = [json.loads(line) for line in answer.out.splitlines()]
    assert [line["text"] for line in written] == ["good", "bad", "好"]
    found = predictions(folder)
    assert [line["prediction"] for line in written] == [found[0], found[3], found[4]]


def test_regression_and_several_labels(run: Any, tmp_path: Path) -> None:
    save(tmp_path / "number", ["score"], "regression")
    data = write_rows(tmp_path / "n.csv", [{"text": t, "label": str(i / 2)} for i, t in enumerate(TEXTS)])
    answer = run("eval", "--model", tmp_path / "number", "--data", data, "--json", tmp_path / "n.json")
    figures = json.loads((tmp_path / "n.json").read_text())
    clf, tokenizer = load_with_tokenizer(tmp_path / "number")
    found = [float(clf.predict(tokenizer.encode(text)[None, :16])[0]) for text in TEXTS]
    right = [i / 2 for i in range(6)]
    assert figures["mean_absolute_error"] == pytest.approx(metrics.mean_absolute_error(found, right))
    assert figures["loss"] == pytest.approx(metrics.mean_squared_error(found, right))
    assert f"correlation {figures['correlation']:.4f}" in answer.out
    save(tmp_path / "multi", ["a", "b", "c"], "multi_label_classification")
    rows = [
        {"text": text, "label": label} for text, label in zip(TEXTS, ["a", "a|b", "", "c", "b|c", "a"], strict=True)
    ]
    rows[2]["label"] = "b"
    data = write_rows(tmp_path / "m.csv", rows)
    answer = run("eval", "--model", tmp_path / "multi", "--data", data, "--json", tmp_path / "m.json",
                 "--predictions", tmp_path / "m.jsonl")  # fmt: skip
    assert answer.code == 0, answer.err
    figures = json.loads((tmp_path / "m.json").read_text())
    written = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    exact = np.mean([sorted(line["prediction"]) == sorted(line["label"].split("|")) for line in written])
    assert figures["accuracy"] == exact
    assert set(figures["f1"]) == {"a", "b", "c"}


def test_a_language_model_on_a_text_as_before_and_as_json(run: Any, model: Path, text: Path, tmp_path: Path) -> None:
    answer = run("eval", "--model", model, "--data", text, "--json", tmp_path / "report.json")
    figures = json.loads((tmp_path / "report.json").read_text())
    assert answer.out.startswith(f"loss {figures['loss']:.4f} nats per token over {figures['tokens']} tokens")
    assert f"{figures['bits_per_byte']:.3f} bits per byte" in answer.out


def test_rows_that_are_wrong(run: Any, folder: Path, tmp_path: Path) -> None:
    rows = [{"text": "good", "label": "pos"}, {"text": "what", "label": "unsure"}, {"text": " ", "label": "neg"}]
    data = write_rows(tmp_path / "r.csv", rows)
    command = ["eval", "--model", folder, "--data", data, "--json", tmp_path / "r.json"]
    assert_one_sentence(run(*command), r"r.csv, line 3: the label 'unsure' is not one of the model's 2: 'neg', 'pos'")
    assert not (tmp_path / "r.json").exists()
    answer = run(*command, "--skip-bad-rows")
    assert answer.code == 0
    assert "1 rows; 2 left out, such as" in answer.out
    other = write_rows(tmp_path / "o.csv", [{"review": "good", "label": "pos"}])
    assert_one_sentence(run("eval", "--model", folder, "--data", other), "the column 'text' is missing; there is 'rev")
    other = write_rows(tmp_path / "p.csv", [{"text": "good", "stars": "5"}])
    assert_one_sentence(run("eval", "--model", folder, "--data", other), "the column 'label' is missing")
    (tmp_path / "no.jsonl").write_text('{"text": "good", "label": "pos"}\nno\n')
    assert_one_sentence(run("eval", "--model", folder, "--data", tmp_path / "no.jsonl"), "no.jsonl, line 2: this is n")
    (tmp_path / "empty.jsonl").write_text("")
    assert_one_sentence(run("eval", "--model", folder, "--data", tmp_path / "empty.jsonl"), "there is no row in")
    assert_one_sentence(run("predict", "--model", folder, "--data", tmp_path / "empty.jsonl"), "there is no text in")


def test_commands_that_are_wrong(run: Any, folder: Path, model: Path, text: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "r.csv")
    before = data.read_bytes()
    assert_one_sentence(run("eval", "--model", folder), "holds a classifier: give rows with a text and a label")
    assert_one_sentence(run("eval", "--model", folder, "--data", data, "--stride=4"), "--stride is for texts")
    assert_one_sentence(
        run("eval", "--model", folder, "--data", data, "--predictions", data), "r.csv is the data itself"
    )
    assert_one_sentence(
        run("predict", "--model", folder, "--data", data, "--out", tmp_path / "no" / "x"), "there is no folder"
    )
    assert data.read_bytes() == before
    assert_one_sentence(run("predict", "--model", model, "--data", data), "there is no prompt.* not a classifier")
    assert_one_sentence(
        run("eval", "--model", model, "--data", text, "--predictions", tmp_path / "x"), "--predictions is for rows"
    )
    assert_one_sentence(run("sample", "--model", folder), "holds a classifier.*not a language model")
    assert_one_sentence(run("eval", "--model", folder, "--data", data, "--batch-size=0"), "batch_size must be at least")
