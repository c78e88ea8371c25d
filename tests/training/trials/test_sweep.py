"""--sweep: each run is that of the plain command, and nothing ends the search but its user."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import OPTIONS, assert_same_outcome
from tests.training.trials.helpers import SHORT, SWEEP, changed, rows

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.mark.slow
def test_each_run_is_that_of_the_plain_command(train: Any, run: Any, text: Path, tmp_path: Path) -> None:
    answer = train(SWEEP)
    assert answer.code == 0, answer.err
    found = rows(tmp_path / "out")
    names = [f"lr={lr},dropout={dropout}" for lr in ("0.0001", "0.02") for dropout in ("0", "0.1")]
    assert [row["folder"] for row in found] == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sweep.json", *names}
    for row in found[1:3]:
        options = [f"--{key}={value}" for key, value in row["settings"].items()]
        alone = tmp_path / row["folder"]
        options += [f"--data={text}", f"--out={alone}", "--final-eval=none"]
        assert run("train", *SHORT, *options).code == 0
        assert_same_outcome(tmp_path / "out" / row["folder"], alone)
        assert (tmp_path / "out" / row["folder"] / "config.toml").read_text() == (alone / "config.toml").read_text()
    best = min(found, key=lambda row: row["loss"])
    assert best["settings"]["lr"] == 0.02
    assert (
        f"The best is {tmp_path / 'out' / best['folder']}, with a validation loss of {best['loss']:.4f}" in answer.out
    )
    table = answer.out.split("seconds\n")[1].splitlines()[:4]
    assert [line.split()[2] for line in table] == sorted(f"{row['loss']:.4f}" for row in found)
    assert "Loss over" not in answer.out  # no evaluation over the whole text, unless it is asked for


@pytest.mark.slow
def test_a_run_that_diverges_is_a_line_of_the_table(train: Any, resume: Any, tmp_path: Path) -> None:
    answer = train("lr=1e30,0.01")
    assert answer.code == 0, answer.err
    assert [(row["status"], row["loss"] is None) for row in rows(tmp_path / "out")] == [
        ("diverged", True), ("finished", False),
    ]  # fmt: skip
    assert re.search(r"1e\+30 +- .*diverged: ", answer.out)
    assert "The best is " + str(tmp_path / "out" / "lr=0.01") in answer.out
    again = resume("lr=1e30,0.01")
    assert (again.code, "Run " in again.out) == (0, False)  # it would diverge at the same step


@pytest.mark.slow
def test_a_search_without_a_result(train: Any, tmp_path: Path) -> None:
    answer = train("lr=1e30,1e35")
    assert answer.code == 1
    assert "No run has finished." in answer.out
    assert len(rows(tmp_path / "out")) == 2


@pytest.mark.slow
def test_a_run_that_fails_is_tried_again(
    train: Any, resume: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int, step: int) -> None:
        if number == 1 and step == 7:
            raise MemoryError("no room for 3 GiB")

    with monkeypatch.context() as patch:
        changed(patch, fail)
        answer = train("lr=0.02,0.01")
    assert answer.code == 0, answer.err
    assert "This run failed: not enough memory (no room for 3 GiB)" in answer.out
    assert [row["status"] for row in rows(tmp_path / "out")] == ["failed", "finished"]
    assert "Try the failed runs again with:" in answer.out
    assert resume("lr=0.02,0.01").code == 0
    assert [row["status"] for row in rows(tmp_path / "out")] == ["finished", "finished"]


def test_a_mistake_of_all_runs_is_said_at_once_and_leaves_nothing(run: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("to be")
    for name, words in (("none.txt", "none.txt"), ("short.txt", "short")):
        answer = run("train", *SHORT, f"--data={tmp_path / name}", f"--out={tmp_path / 'a' / 'b'}", f"--sweep={SWEEP}")
        assert_one_sentence(answer, words)
        assert "Run 2" not in answer.out
        assert not (tmp_path / "a").exists()


def test_a_text_from_a_pipe_is_read_once_only(run: Any, tmp_path: Path) -> None:
    for options in (("-",), ("--data=-",)):
        answer = run("train", *SHORT, *options, f"--out={tmp_path / 'out'}", f"--sweep={SWEEP}")
        assert_one_sentence(answer, "can't come from a pipe")


@pytest.mark.slow
def test_a_file_of_settings_and_what_the_sweep_takes_the_place_of(run: Any, text: Path, tmp_path: Path) -> None:
    lines = [option[2:].replace("-", "_").replace("=", " = ") for option in OPTIONS]
    (tmp_path / "run.toml").write_text("\n".join([*lines, f"data = {json.dumps(str(text))}"]))
    command = ("train", "--config", tmp_path / "run.toml", f"--out={tmp_path / 'out'}")
    assert run(*command, "--sweep=lr=0.02 epochs=0.01,0.02").code == 0
    assert [row["status"] for row in rows(tmp_path / "out")] == ["finished"] * 2
    written = (tmp_path / "out" / "lr=0.02,epochs=0.01" / "config.toml").read_text()
    assert "epochs = 0.01" in written
    assert "lr = 0.02" in written
    assert "n_embd = 8" in written


@pytest.mark.slow
def test_fine_tuning(run: Any, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("text\n" + "".join(f"{'To ' * n}be\n" for n in range(1, 10)), encoding="utf-8")
    command = ("finetune", f"--model={model}", f"--data={table}", f"--out={tmp_path / 'out'}", "--steps=3")
    assert_one_sentence(run(*command, "--sweep=seed=1,2"), "seed also chooses the rows for validation .* --valid")
    assert_one_sentence(run(*command, "--sweep=model=gpt2,b"), "model changes what the validation loss")
    assert_one_sentence(run(*command, "--sweep=dropout=0,2"), "dropout=2: .*dropout")
    assert_one_sentence(run(*command, "--sweep=lr=1", "--folds=2"), "leave out --dry-run, --lr-find and --sweep")
    asked = "lr=0.01 lora_rank=1,2"
    (tmp_path / "out" / "lr=0.01,lora_rank=2").mkdir(parents=True)
    (tmp_path / "out" / "lr=0.01,lora_rank=2" / "metrics.jsonl").write_text("mine")
    assert_one_sentence(run(*command, f"--sweep={asked}"), "lora_rank=2: the folder .* holds files that no run")
    shutil.rmtree(tmp_path / "out")
    answer = run(*command, f"--sweep={asked}")
    assert answer.code == 0, answer.err
    assert [row["status"] for row in rows(tmp_path / "out")] == ["finished"] * 2
    assert "The best is" in answer.out
    alone = ["--lr=0.01", "--lora-rank=2", f"--out={tmp_path / 'alone'}"]
    assert run(*command, *alone).code == 0
    assert_same_outcome(tmp_path / "out" / "lr=0.01,lora_rank=2", tmp_path / "alone")
    wrong = run("train", "--resume", f"--sweep={SWEEP}", f"--out={tmp_path / 'out'}")
    assert_one_sentence(wrong, "is one of tinygpt finetune, not train")
