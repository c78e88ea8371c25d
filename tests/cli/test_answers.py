"""`tinygpt eval` and `predict` with a language model on rows: losses, answers, and how good they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tinygpt import metrics
from tinygpt.tokenizers import ByteTokenizer
from tinygpt.training import read_metrics

ROWS = [
    {"question": "1 + 1?", "answer": "2"}, {"question": "the sky?", "answer": "blue, mostly"},
    {"question": "好?", "answer": "好"},
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = tg.GPT(tg.GPTConfig(256, block_size=64, n_layer=1, n_head=2, n_embd=16), seed=1)
    rng = np.random.default_rng(5)
    for parameter in model.parameters():
        parameter.data[...] += 0.2 * rng.standard_normal(parameter.shape)
    model.save_pretrained(folder, tokenizer=ByteTokenizer())
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_hand(base: Path, question: str) -> str:
    """The model's greedy answer in the template `plain`."""
    model, tokenizer = tg.interop.load(base)
    ids = tokenizer.encode(f"User: {question}\nAssistant:")
    out = model.generate(ids[None], 12, do_sample=False, stop_strings=["\nUser:"], tokenizer=tokenizer)[0, len(ids) :]
    return tokenizer.token_bytes(out).decode("utf-8", errors="replace").partition("\nUser:")[0].strip()


def test_eval_of_prompts_with_answers(run: Any, base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "qa.jsonl", ROWS)
    report, found = tmp_path / "r.json", tmp_path / "p.jsonl"
    command = ["eval", "--model", base, "--data", data, "--max-new-tokens=12"]
    answer = run(*command, "--json", report, "--predictions", found)
    assert answer.code == 0, answer.err
    figures, written = json.loads(report.read_text()), lines(found)
    answers = [by_hand(base, row["question"]) for row in ROWS]
    assert [line["prediction"] for line in written] == answers
    assert [line["answer"] for line in written] == [row["answer"] for row in ROWS]
    right = [row["answer"] for row in ROWS]
    assert figures["exact_match"] == metrics.exact_match(answers, right)
    assert figures["token_f1"] == metrics.token_f1(answers, right)
    assert f"loss {figures['loss']:.4f} nats per token over {figures['tokens']} tokens" in answer.out
    assert "exact match" in answer.out


@pytest.mark.slow
def test_the_loss_is_that_of_fine_tunings_first_evaluation(run: Any, base: Path, tmp_path: Path) -> None:
    """Of answers, and of texts."""
    texts = [{"text": f"a text of its own, number {i}"} for i in range(6)]
    for name, content in (("qa", ROWS * 2), ("texts", texts)):
        data = write(tmp_path / f"{name}.jsonl", content)
        out = tmp_path / f"{name}-run"
        quick = ["--steps=1", "--batch-size=2", "--lr=0.001"]
        answer = run("finetune", "--model", base, "--data", data, "--valid", data, "--out", out, *quick)
        assert answer.code == 0, answer.err
        first = next(record for record in read_metrics(out / "metrics.jsonl") if "validation_loss" in record)
        assert (
            run("eval", "--model", base, "--data", data, "--json", tmp_path / "r.json", "--max-new-tokens=2").code == 0
        )
        assert json.loads((tmp_path / "r.json").read_text())["loss"] == pytest.approx(
            first["validation_loss"], rel=1e-6
        )
    assert (tmp_path / "qa-run" / "template.toml").exists()
    assert run("eval", "--model", tmp_path / "qa-run", "--data", tmp_path / "qa.jsonl", "--max-new-tokens=2").code == 0


def test_predict_answers_prompts_in_every_form(run: Any, base: Path, tmp_path: Path) -> None:
    forms: list[list[dict[str, Any]]] = [
        [{"question": row["question"]} for row in ROWS],
        [{"instruction": row["question"], "output": "not read"} for row in ROWS],
        [{"messages": [{"role": "user", "content": row["question"]}]} for row in ROWS],
        [{"prompt": [{"role": "user", "content": row["question"]}]} for row in ROWS],
        [
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": "not read"},
                ]
            }
            for row in ROWS
        ],
    ]
    answers = [by_hand(base, row["question"]) for row in ROWS]
    for number, rows in enumerate(forms):
        data = write(tmp_path / f"{number}.jsonl", rows)
        out = tmp_path / f"{number}-out.jsonl"
        answer = run("predict", "--model", base, "--data", data, "--out", out, "--max-new-tokens=12")
        assert answer.code == 0, answer.err
        assert [line["prediction"] for line in lines(out)] == answers
        assert "3 rows" in answer.out
    text = tmp_path / "prompts.txt"
    text.write_text("\n".join(row["question"] for row in ROWS), encoding="utf-8")
    answer = run("predict", "--model", base, "--data", text, "--template=plain", "--max-new-tokens=12")
    assert [json.loads(line)["prediction"] for line in answer.out.splitlines()] == answers


@pytest.mark.slow
def test_conversations_in_every_command(run: Any, base: Path, tmp_path: Path) -> None:
    talk = [
        {"prompt": [{"role": "user", "content": row["question"]}],
         "completion": [{"role": "assistant", "content": row["answer"]}]}
        for row in ROWS
    ]  # fmt: skip
    data, same = write(tmp_path / "talk.jsonl", talk), write(tmp_path / "qa.jsonl", ROWS)
    figures = []
    for path in (data, same):
        report = tmp_path / "r.json"
        answer = run("eval", "--model", base, "--data", path, "--max-new-tokens=12", "--json", report)
        assert answer.code == 0, answer.err
        figures.append(json.loads(report.read_text()) | {"data": None})
    assert figures[0] == figures[1]
    quick = ["--steps=2", "--batch-size=2", "--valid", data, "--template", "plain"]
    for number, options in enumerate((quick, quick[:-2])):  # by default in the same template
        answer = run("finetune", "--model", base, "--data", data, *options, "--out", tmp_path / f"run-{number}")
        assert answer.code == 0, answer.err
    first, second = ((tmp_path / f"run-{number}" / "template.toml").read_text() for number in (0, 1))
    assert first == second
    answer = run("predict", "--model", tmp_path / "run-1", "--data", data, "--max-new-tokens=4")
    assert len(answer.out.splitlines()) == 3


@pytest.mark.slow
def test_a_first_row_that_is_bad(run: Any, base: Path, tmp_path: Path) -> None:
    bad = [{"note": "no prompt"}, {"question": 3, "answer": "4"}]
    data, good = write(tmp_path / "bad.jsonl", bad + ROWS), write(tmp_path / "good.jsonl", ROWS)
    data.write_text("no JSON\n" + data.read_text(encoding="utf-8"), encoding="utf-8")
    for command in (("predict", "--max-new-tokens=4"), ("eval", "--max-new-tokens=4"), ("finetune", "--steps=1")):
        outs = []
        for path, more in ((data, ("--skip-bad-rows",)), (good, ())):
            kept = {"predict": "--out", "eval": "--predictions", "finetune": "--out"}[command[0]]
            out = tmp_path / f"{command[0]}-{path.stem}"
            answer = run(*command, "--model", base, "--data", path, *more, kept, out)
            assert answer.code == 0, answer.err
            outs.append(out.read_text() if command[0] != "finetune" else "")
            assert "3 rows" in answer.out or command[0] == "finetune"
        assert outs[0] == outs[1]
        answer = run(*command, "--model", base, "--data", data, kept, tmp_path / "x")
        assert_one_sentence(answer, r"bad\.jsonl, line 1: this is not JSON")
    only = write(tmp_path / "only.jsonl", bad[:1])
    for name in ("predict", "eval", "finetune"):
        answer = run(name, "--model", base, "--data", only, "--skip-bad-rows")
        assert answer.code == 2
        assert "only.jsonl, line 1:" in answer.err


def test_what_is_wrong(run: Any, base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "l.jsonl", [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}])
    command = ["eval", "--model", base, "--data"]
    assert_one_sentence(run(*command, data), "a language model, but .*l.jsonl has labels: make a classifier")
    assert_one_sentence(run("predict", "--model", base, "--data", data), "l.jsonl, line 1: there is no prompt")
    texts = write(tmp_path / "t.jsonl", [{"text": "good and long enough"}])
    assert_one_sentence(run(*command, texts, "--predictions", tmp_path / "x"), "--predictions is for rows with labels")
    assert_one_sentence(run(*command, texts, "--stride=4"), "--stride is for a whole text, not for rows")
    assert_one_sentence(run(*command, texts, "--template=plain"), "--template is for dialogues and prompts")
    half = write(tmp_path / "h.jsonl", [{"question": "a?", "answer": "b"}, {"question": "a?"}])
    assert_one_sentence(run(*command, half), "h.jsonl, line 2: the column 'answer' is missing")
    long = write(tmp_path / "m.jsonl", [{"question": "x" * 80}])
    assert_one_sentence(run("predict", "--model", base, "--data", long), "m.jsonl, line 1: the message is too long")
    none = write(tmp_path / "n.jsonl", [])
    assert_one_sentence(run(*command, none), "there are no rows in")
    assert_one_sentence(run("predict", "--model", base, "--data", none), "there is no prompt in")
