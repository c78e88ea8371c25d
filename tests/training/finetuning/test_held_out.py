"""`tinygpt eval` without --data on a run of `finetune`: the rows that it did not learn from; --encoding of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tinygpt.tokenizers import ByteTokenizer
from tinygpt.training import read_metrics

QUICK = ["--steps=6", "--batch-size=8", "--lr=0.02", "--eval-every=3", "--warmup-steps=2", "--checkpoint-every=3"]

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = tg.GPTConfig(257, block_size=32, n_layer=1, n_head=2, n_embd=16)
    tg.GPT(config, seed=1).save_pretrained(folder, tokenizer=ByteTokenizer(end_token=True))
    return folder


def reviews(path: Path, begin: int = 0, count: int = 40, encoding: str = "utf-8") -> Path:
    rows = [f"{'坏' if i % 3 == 0 else '好'} number {i},{'neg' if i % 3 == 0 else 'pos'}" for i in range(begin, count)]
    path.write_text("text,label\n" + "".join(f"{row}\n" for row in rows), encoding=encoding)
    return path


def questions(path: Path, count: int = 30) -> Path:
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def best(folder: Path) -> dict[str, Any]:
    records = [record for record in read_metrics(folder / "metrics.jsonl") if "validation_loss" in record]
    return min(records, key=lambda record: record["validation_loss"])


@pytest.fixture
def figures(run: Any, tmp_path: Path) -> Any:
    def of(folder: Path, *options: Any) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
        """The report, the predictions and what was printed."""
        report, lines = tmp_path / "report.json", tmp_path / "lines.jsonl"
        answer = run("eval", "--model", folder, "--json", report, *options)
        assert answer.code == 0, answer.err
        if "--predictions" in options:
            written = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        return json.loads(report.read_text()), written if "--predictions" in options else [], answer.out

    return of


def test_a_classifier_is_evaluated_on_the_rows_that_it_was_validated_on(
    run: Any, figures: Any, base: Path, tmp_path: Path
) -> None:
    data, out = reviews(tmp_path / "reviews.csv"), tmp_path / "clf"
    answer = run("finetune", "--model", base, "--data", data, "--out", out, *QUICK)
    assert answer.code == 0, answer.err
    assert f" eval --model {out}\n" in answer.out
    report, lines, said = figures(out, "--predictions", tmp_path / "lines.jsonl")
    assert f"{data}: 4 rows, from which the run did not learn; but its best weights were chosen on them\n" in said
    assert (report["rows"], report["data"]) == (4, str(data))
    assert len({line["text"] for line in lines}) == 4
    assert report["loss"] == pytest.approx(best(out)["validation_loss"], rel=1e-5)
    assert (report["accuracy"], report["macro_f1"]) == (best(out)["accuracy"], best(out)["macro_f1"])
    report, _, said = figures(out, "--data", data)
    assert report["rows"] == 40
    assert "40 rows; the run learned from rows of this file: leave --data out" in said
    _, _, said = figures(out, "--data", reviews(tmp_path / "more.csv", 40, 50))
    assert "learn" not in said


@pytest.mark.slow
def test_validation_rows_of_their_own_and_those_of_a_fold(run: Any, figures: Any, base: Path, tmp_path: Path) -> None:
    data, valid = reviews(tmp_path / "reviews.csv"), reviews(tmp_path / "valid.csv", 40, 49)
    options = ["--model", base, "--data", data, *QUICK]
    assert run("finetune", *options, "--valid", valid, "--out", tmp_path / "clf").code == 0
    report, _, said = figures(tmp_path / "clf")
    assert (report["rows"], report["data"]) == (9, str(valid))
    assert f"{valid}: 9 rows, those of --valid; but its best weights were chosen on them\n" in said
    assert report["loss"] == pytest.approx(best(tmp_path / "clf")["validation_loss"], rel=1e-5)
    assert run("finetune", *options, "--folds=3", "--out", tmp_path / "cv").code == 0
    summary = json.loads((tmp_path / "cv" / "folds.json").read_text())["folds"]
    for number, fold in enumerate(summary, 1):
        report, _, said = figures(tmp_path / "cv" / f"fold-{number}", "--checkpoint=latest")
        assert ", from which the run did not learn\n" in said
        assert (report["rows"], report["confusion_matrix"]) == (fold["rows"], fold["confusion_matrix"])


@pytest.mark.parametrize("task", ["sft", "text"])
def test_a_language_model_is_evaluated_on_its_validation_rows(
    run: Any, figures: Any, base: Path, tmp_path: Path, task: str
) -> None:
    """The task is that of the run, where the columns would do for another as well."""
    data = questions(tmp_path / "rows.jsonl") if task == "sft" else reviews(tmp_path / "rows.csv")
    out = tmp_path / "model"
    assert run("finetune", "--model", base, "--data", data, "--task", task, "--out", out, *QUICK).code == 0
    more = ["--max-new-tokens=2", "--predictions", tmp_path / "lines.jsonl"] if task == "sft" else []
    report, lines, said = figures(out, *more)
    assert report["rows"] == (3 if task == "sft" else 4)
    assert report["loss"] == pytest.approx(best(out)["validation_loss"], rel=1e-5)
    assert f"{data}: {report['rows']} rows, from which the run did not learn" in said
    assert len(lines) == (3 if task == "sft" else 0)


def test_rows_that_are_not_there_any_more(run: Any, base: Path, tmp_path: Path) -> None:
    data, out = reviews(tmp_path / "reviews.csv"), tmp_path / "clf"
    assert run("finetune", "--model", base, "--data", data, "--out", out, *QUICK).code == 0
    with open(data, "a", encoding="utf-8") as file:
        file.write("one more,pos\n")
    answer = run("eval", "--model", out)
    assert_one_sentence(answer, r"reviews\.csv has changed since the run in .* its validation rows are no longer known")
    data.unlink()
    assert_one_sentence(run("eval", "--model", out), r"cannot read .*reviews\.csv")
    (out / "data.json").unlink()
    assert_one_sentence(run("eval", "--model", out), r"holds a classifier: give rows with a text and a label")


@pytest.mark.slow
def test_rows_in_another_encoding(run: Any, figures: Any, base: Path, tmp_path: Path) -> None:
    """As Excel writes them in China."""
    data, out = reviews(tmp_path / "reviews.csv", encoding="gbk"), tmp_path / "clf"
    options = ["finetune", "--model", base, "--data", data, "--out", out, *QUICK]
    assert_one_sentence(run(*options), r"reviews\.csv is not UTF-8 text: .* or give the encoding that it has")
    answer = run(*options, "--encoding=gb18030")
    assert answer.code == 0, answer.err
    report, _, _ = figures(out)  # the run knows the encoding
    assert report["rows"] == 4
    assert report["loss"] == pytest.approx(best(out)["validation_loss"], rel=1e-5)
    _, lines, _ = figures(out, "--data", data, "--encoding=gbk", "--predictions", tmp_path / "lines.jsonl")
    assert lines[1]["text"] == "好 number 1"
    answer = run("predict", "--model", out, "--data", data, "--encoding=gbk")
    assert json.loads(answer.out.splitlines()[0])["text"] == "坏 number 0"
    again = ["finetune", "--resume", "--out", out, "--steps=7"]
    assert_one_sentence(run(*again, "--encoding=utf-8"), "has the encoding gb18030, not utf-8: leave it out")
    assert run(*again).code == 0
    text = tmp_path / "text.txt"
    text.write_text("好" * 40, encoding="gbk")
    model = tmp_path / "lm"
    assert run("finetune", *options[1:5], "--out", model, *QUICK, "--task=text", "--encoding=gbk").code == 0
    answer = run("eval", "--model", model, "--data", text, "--encoding=gbk")
    assert answer.code == 0, answer.err
    assert "over 119 tokens" in answer.out
