"""`tinygpt finetune --label-kind`: several labels per text, and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tinygpt import GPTForSequenceClassification, metrics
from tinygpt.data.labelled import LabelledExamples
from tinygpt.data.rows import Row
from tinygpt.tokenizers import ByteTokenizer
from tinygpt.training import CheckpointFolder, read_metrics

QUICK = ["--steps=80", "--batch-size=8", "--lr=0.02", "--log-every=40", "--eval-every=40", "--checkpoint-every=40",
         "--warmup-steps=2"]  # fmt: skip
NAMES = ["big", "old", "red"]

pytestmark = pytest.mark.usefixtures("without_picture")


def several(endings: str = "01234") -> list[dict[str, Any]]:
    """Texts that are their labels' initials, in all combinations; a text has none of them, too."""
    chosen = [[name for k, name in enumerate(NAMES) if i >> k & 1] for i in range(8)]
    return [{"text": f"{''.join(n[0] for n in names)}-{end}", "label": names} for end in endings for names in chosen]


def numbers(begin: int = 0) -> list[dict[str, Any]]:
    """Texts whose sign alone says the number."""
    signs = (("+", 1.5), ("-", -0.5))
    return [{"text": f"{sign}{i}", "label": label} for i in range(begin, begin + 20) for sign, label in signs]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def last_evaluation(folder: Path) -> dict[str, Any]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if "validation_loss" in record][-1]


@pytest.mark.slow
def test_several_labels_are_learned_and_told(run: Any, base: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", several()), tmp_path / "clf"
    valid = write(tmp_path / "valid.jsonl", several("567"))
    answer = run(
        "finetune", f"--model={base}", f"--data={data}", f"--valid={valid}", f"--out={out}", *QUICK, "--steps=160"
    )
    assert answer.code == 0, answer.err
    figures = last_evaluation(out)
    # Over five seeds at least 0.917; all labels for every text: 2/3; learned from shuffled labels: 0.36.
    assert figures["micro_f1"] > 0.8
    assert figures["validation_loss"] < 0.4 < np.log(2)
    settings = json.loads((out / "config.json").read_text())
    assert settings["problem_type"] == "multi_label_classification"
    assert settings["id2label"] == {"0": "big", "1": "old", "2": "red"}
    answer = run("eval", f"--model={out}", f"--data={valid}", f"--json={tmp_path / 'report.json'}")
    report = json.loads((tmp_path / "report.json").read_text())
    best = min(record["validation_loss"] for record in read_metrics(out / "metrics.jsonl") if "accuracy" in record)
    assert report["loss"] == pytest.approx(best, rel=1e-4)
    assert f"micro f1 {report['micro_f1']:.4f}" in answer.out
    assert f"F1 of each label: big {report['f1']['big']:.4f}" in answer.out
    assert run("predict", f"--model={out}", f"--data={valid}", f"--out={tmp_path / 'p.jsonl'}").code == 0
    written = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    same = [line["prediction"] == line["label"] for line in written]
    assert np.mean(same) == report["accuracy"]


def test_names_with_a_bar_between_them(run: Any, base: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": "|".join(row["label"]) or "big"} for row in several()]
    data, out = tmp_path / "rows.csv", tmp_path / "clf"
    data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows), encoding="utf-8")
    command = ["finetune", f"--model={base}", f"--data={data}", f"--out={out}", *QUICK, "--steps=2"]
    assert run(*command, "--label-kind=multi").code == 0
    assert GPTForSequenceClassification.from_pretrained(out).label_names == NAMES
    assert run(*command, "--overwrite").code == 0  # without the option each combination is a label
    assert len(GPTForSequenceClassification.from_pretrained(out).label_names) == 7


@pytest.mark.slow
def test_numbers_are_learned_and_told(run: Any, base: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", numbers()), tmp_path / "clf"
    valid = write(tmp_path / "valid.jsonl", numbers(20))
    command = ["finetune", f"--model={base}", f"--data={data}", f"--valid={valid}", "--label-kind=number", *QUICK]
    answer = run(*command, f"--out={out}")
    assert answer.code == 0, answer.err
    figures = last_evaluation(out)
    assert figures["root_mean_squared_error"] == pytest.approx(figures["validation_loss"] ** 0.5, rel=1e-4)
    assert figures["root_mean_squared_error"] < 0.5  # over five seeds at most 0.03; of the mean: 1; untrained: 1.1
    assert figures["correlation"] > 0.9
    assert json.loads((out / "config.json").read_text())["problem_type"] == "regression"
    answer = run("eval", f"--model={out}", f"--data={data}")
    assert "rank correlation" in answer.out
    assert GPTForSequenceClassification.from_pretrained(out).num_labels == 1
    assert run("finetune", f"--model={out}", *command[2:], f"--out={tmp_path / 'on'}", "--steps=2").code == 0
    words = "a classifier for regression, which reads labels as number: leave out --label-kind multi"
    again = ["finetune", f"--model={out}", f"--data={data}", f"--out={tmp_path / 'no'}", "--label-kind=multi"]
    assert_one_sentence(run(*again), words)


@pytest.mark.parametrize(("kind", "rows"), [("multi", several), ("number", numbers)])
def test_a_resumed_run_comes_to_the_same_weights(kind: str, rows: Any, run: Any, base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows())
    options = [f"--model={base}", f"--data={data}", *QUICK, f"--label-kind={kind}", "--checkpoint-every=2"]
    assert run("finetune", *options, "--steps=4", f"--out={tmp_path / 'whole'}").code == 0
    assert run("finetune", *options, "--steps=2", "--decay-steps=4", f"--out={tmp_path / 'parts'}").code == 0
    answer = run("finetune", "--resume", f"--out={tmp_path / 'parts'}", "--steps=4")
    assert answer.code == 0, answer.err
    whole, parts = (CheckpointFolder(tmp_path / name).load("latest").model for name in ("whole", "parts"))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)
    other = run("finetune", "--resume", f"--out={tmp_path / 'parts'}", "--label-kind=single")
    assert_one_sentence(other, f"has the label_kind {kind}, not single")


@pytest.mark.parametrize(("kind", "rows", "figure"), [("multi", several, "micro f1"), ("number", numbers, "root mean")])
def test_folds(kind: str, rows: Any, figure: str, run: Any, base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows())
    command = ["finetune", f"--model={base}", f"--data={data}", *QUICK, "--steps=2", "--folds=2"]
    answer = run(*command, f"--label-kind={kind}", f"--out={tmp_path / 'cv'}")
    assert answer.code == 0, answer.err
    assert figure in answer.out


def test_a_kind_that_nobody_knows(run: Any, base: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", numbers()), tmp_path / "run"
    command = ["finetune", f"--model={base}", f"--data={data}", f"--out={out}", "--label-kind=number", *QUICK]
    assert run(*command, "--steps=2").code == 0
    facts = json.loads((out / "data.json").read_text())
    (out / "data.json").write_text(json.dumps(facts | {"label_kind": "many"}))
    answer = run("finetune", "--resume", f"--out={out}", "--steps=4")
    assert_one_sentence(answer, r"data.json is damaged \(label_kind must be one of single, multi, number\)")


def test_mistakes_are_one_sentence(run: Any, base: Path, tmp_path: Path) -> None:
    def answer(rows: list[dict[str, Any]], *more: str) -> Any:
        data = write(tmp_path / "rows.jsonl", rows)
        return run("finetune", f"--model={base}", f"--data={data}", f"--out={tmp_path / 'run'}", *QUICK, *more)

    wrong = [*numbers(), {"text": "much", "label": "a lot"}]
    assert_one_sentence(answer(wrong, "--label-kind=number"), "line 41: the label of a regression must be a number")
    words = "--class-weights is for one label per text, not for --label-kind multi"
    assert_one_sentence(answer(several(), "--class-weights=balanced"), words)
    words = "line 41: a label must be a text or a whole number"
    assert_one_sentence(answer([*several(), {"text": "no", "label": [{}]}]), words)
    zeros_and_ones = [{"text": row["text"], "label": [int(n in row["label"]) for n in NAMES]} for row in several()]
    assert_one_sentence(answer(zeros_and_ones), "line 1: the label '0' stands twice: give the names of the text's")
    texts = [{"text": row["text"]} for row in numbers()]
    assert_one_sentence(answer(texts, "--label-kind=multi"), "--label-kind is for the task classify")
    assert not (tmp_path / "run").exists()


def in_columns(rows: list[dict[str, Any]], no: Any = 0, yes: Any = 1) -> list[dict[str, Any]]:
    return [{"id": i, "text": row["text"]} | {name: yes if name in row["label"] else no for name in NAMES}
            for i, row in enumerate(rows)]  # fmt: skip


@pytest.mark.slow
def test_labels_in_columns_are_those_of_a_list(run: Any, base: Path, tmp_path: Path) -> None:
    """The same run bit for bit, whether a label's column or a list says it; and resumed, evaluated and tested so."""
    lists = write(tmp_path / "lists.jsonl", several())
    command = ["finetune", f"--model={base}", *QUICK, "--steps=4", "--checkpoint-every=2"]
    assert run(*command, f"--data={lists}", f"--out={tmp_path / 'lists'}").code == 0
    data, out = write(tmp_path / "columns.jsonl", in_columns(several())), tmp_path / "columns"
    named = [*command, f"--data={data}", "--label-columns=big, old,red"]
    answer = run(*named, f"--out={out}", "--steps=2", "--decay-steps=4")
    assert answer.code == 0, answer.err
    assert "not read: the column 'id'" in answer.out
    assert run("finetune", "--resume", f"--out={out}", "--steps=4").code == 0
    ours, theirs = (CheckpointFolder(folder).load("latest").model for folder in (out, tmp_path / "lists"))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    reports = []
    for folder, rows in ((out, []), (out, [f"--data={data}"]), (tmp_path / "lists", [f"--data={lists}"])):
        answer = run("eval", f"--model={folder}", *rows, "--checkpoint=latest", f"--json={tmp_path / 'report.json'}")
        assert answer.code == 0, answer.err
        reports.append(json.loads((tmp_path / "report.json").read_text()) | {"data": None})
    assert reports[1] == reports[2]
    assert reports[0]["rows"] == 4  # those that were held out
    assert_one_sentence(run("finetune", "--resume", f"--out={out}", "--label-columns=a,b"), "has the label_columns")
    answer = run("finetune", f"--model={out}", *named[2:-1], "--label-columns=red,big,old", f"--out={tmp_path / 'on'}")
    assert answer.code == 0, answer.err
    assert GPTForSequenceClassification.from_pretrained(tmp_path / "on").label_names == NAMES
    assert run(*named, f"--out={tmp_path / 'folds'}", "--steps=2", "--folds=2").code == 0


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("False", "True"), ("0.0", "1.0"), (False, True), (0.0, 1.0)])
def test_zero_and_one_as_files_write_them(no: Any, yes: Any) -> None:
    maker = LabelledExamples(ByteTokenizer(), 16, NAMES, "columns")
    for row, expected in zip(in_columns(several(), no, yes), several(), strict=True):
        assert [name for name, one in zip(NAMES, maker.make(Row(row, "")).label, strict=True) if one] == expected[
            "label"
        ]


def test_mistakes_in_columns_are_one_sentence(run: Any, base: Path, tmp_path: Path) -> None:
    def refused(words: str, columns: str, *more: str, **change: Any) -> None:
        data = write(tmp_path / "rows.jsonl", [*in_columns(several()), in_columns(several())[0] | change])
        command = ["finetune", f"--model={base}", f"--data={data}", f"--out={tmp_path / 'run'}", *QUICK]
        assert_one_sentence(run(*command, f"--label-columns={columns}", *more), words)

    refused("line 41: the column 'old' must be 0 or 1, but is 2", "big,old", old=2)
    refused("line 41: the column 'old' must be 0 or 1, but is missing or null", "big,old", old=None)
    refused("line 1: there is no column 'new'; the columns are 'id', 'text', 'big', 'old', 'red'", "big,new")
    refused("at least two different names separated by commas, not 'big'", "big")
    refused("at least two different names", "big,big")
    refused("--label-columns is for the task classify, not for the task text", "big,old", "--task=text")
    refused("--label-columns means several labels per text, not --label-kind number", "big,old", "--label-kind=number")
    assert not (tmp_path / "run").exists()
    clf = GPTForSequenceClassification(tg.GPT.from_pretrained(base), 2, label_names=["big", "new"])
    clf.problem_type = "multi_label_classification"
    clf.save_pretrained(tmp_path / "clf", tokenizer=ByteTokenizer())
    refused("must name the labels of the classifier, 'big', 'new', not 'big', 'old'", "big,old",
            f"--model={tmp_path / 'clf'}")  # fmt: skip


def test_the_correlation_of_ranks() -> None:
    assert metrics.rank_correlation([1, 2, 30], [2, 4, 5]) == pytest.approx(1)
    assert metrics.rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)  # scipy's
    assert metrics.rank_correlation([1, 1], [2, 3]) == 0
