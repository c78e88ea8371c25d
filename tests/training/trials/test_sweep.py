"""--sweep: each run is that of the plain command, nothing ends the search but its user, and it goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import ENVIRONMENT, OPTIONS, assert_same_outcome
from tinygpt.cli.parser import OptionParser
from tinygpt.errors import CheckpointError, UsageError
from tinygpt.lock import Lock
from tinygpt.training import Trainer
from tinygpt.training.settings.config_file import keys_of
from tinygpt.training.step.steps import Steps
from tinygpt.training.trials.sweep import TRIED, Row, Search, _require_tried, read_sweep, rows_of

pytestmark = pytest.mark.usefixtures("without_picture")

SWEEP = "lr=1e-4,0.02 dropout=0,0.1"
SHORT = [option for option in OPTIONS if not option.startswith(("--lr", "--dropout"))]


@pytest.fixture
def train(run: Any, text: Path, tmp_path: Path) -> Any:
    """train("lr=1,2", ...) -> Answer, of a sweep in tmp_path / "out"."""
    return lambda asked, *more: run(
        "train", *SHORT, f"--data={text}", f"--out={tmp_path / 'out'}", f"--sweep={asked}", *more
    )


@pytest.fixture
def resume(run: Any, tmp_path: Path) -> Any:
    return lambda asked, *more: run("train", "--resume", f"--out={tmp_path / 'out'}", f"--sweep={asked}", *more)


def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["rows"]


def changed(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Call act(number of the trainer, step) before each step."""
    trainers: list[Trainer] = []
    step = Steps.step

    def acted(steps: Steps) -> float:
        trainer = steps.trainer
        if trainer not in trainers:
            trainers.append(trainer)
        act(len(trainers), trainer.state.step)
        return step(steps)

    monkeypatch.setattr(Steps, "step", acted)


# What is asked for ------------------------------------------------------------------------------

KEYS = keys_of(OptionParser(source="tinygpt.cli.train").parse_args([]))


@pytest.mark.parametrize(
    ("asked", "values"),
    [
        (SWEEP, {"lr": [1e-4, 0.02], "dropout": [0.0, 0.1]}),
        ("lr=3e-4", {"lr": [3e-4]}),
        ("  lr = 1 , .5;\nn-layer=1,2 ;", {"lr": [1.0, 0.5], "n_layer": [1, 2]}),
        ("bias=true,False optimizer=adamw,lion", {"bias": [True, False], "optimizer": ["adamw", "lion"]}),
        ("freeze='wte,wpe',\"h.0\"", {"freeze": ["wte,wpe", "h.0"]}),
    ],
)
def test_what_is_asked_for(asked: str, values: dict[str, Any]) -> None:
    found = read_sweep(asked, KEYS)
    assert list(found.items()) == list(values.items())
    assert read_sweep(Search(Path(), "train", found, {}).asked, KEYS) == found
    assert [type(value) for part in found.values() for value in part] == [
        type(value) for part in values.values() for value in part
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("", "is not of the form key=value,value"),
        ("lr", "'lr' is not of the form"),
        ("lr=", "'lr=' is not of the form"),
        ("lr=1,,2", "'lr=1,,2' is not of the form"),
        ("lr=1,dropout=0", "is not of the form"),
        ("lr=1 2", "'2' is not of the form"),
        ("learning_rate=1", r"there is no setting learning_rate: did you mean lr\?"),
        ("droput=0,0.1", r"there is no setting droput: did you mean dropout\?"),
        ("lr=fast", 'lr must be a number, not "fast"'),
        ("batch_size=4.0", "batch_size must be a whole number, not 4.0"),
        ("bias=1", 'bias must be true or false, not "1"'),
        ("optimizer=adamv", "optimizer must be one of adamw, .*, not 'adamv'"),
        ("lr=1 dropout=0 lr=2", "lr is there twice"),
        ("lr=1e-4,0.0001", "lr has the value 0.0001 twice"),
        ("block_size=8,16", "block_size changes what the validation loss is measured on"),
        ("data=a,b", "data changes what the validation loss is measured on"),
        ("tokenizer=bpe,byte", "tokenizer changes what"),
        ("out=a,b", "out says where a run goes"),
        ("resume=true", "resume can be given on the command line only"),
        ("log_every=1,2", "log_every changes nothing of what a run learns"),
        ("watts=1,2", "watts changes nothing of what a run learns"),
        ("lr=0.1,nan", "lr=nan: .*lr must be above 0, not nan"),
        ("lr=0.1,0", "lr=0: training: lr must be above 0"),
        ("n_head=2,3", "n_head=3: .*n_head"),
        ("batch_size=2,4", "give --eval-batches 0"),
        ("epochs=1,2 steps=3", "give either --epochs or --steps"),
        ("lora_rank=2,4", "--lora-rank trains an adapter"),
    ],
)
def test_mistakes_are_said_before_the_first_run(train: Any, tmp_path: Path, asked: str, words: str) -> None:
    assert_one_sentence(train(asked), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_it_is_decided_for_each_setting_whether_it_is_searched_over(command: str) -> None:
    for name in (keys := keys_of(OptionParser(source=f"tinygpt.cli.{command}").parse_args([]))):
        with contextlib.nullcontext() if name in TRIED else pytest.raises(UsageError) as refused:
            _require_tried(name)
        assert name in TRIED or "is not searched over" not in str(refused.value), name
    assert {"lr", "seed", "dropout", "batch_size", "lora_rank", "optimizer"} <= TRIED
    assert "lr" in keys


def test_names_of_folders_differ_and_are_readable() -> None:
    found = [row.folder for row in rows_of({"lr": [1e-4, 1e-05], "freeze": ["h.0/x", "h.0:x"], "bias": [True]})]
    assert found[0] == "lr=0.0001,freeze=h.0_x,bias=true"
    assert found[1] == f"{found[0]}-2"
    assert found[2] == "lr=1e-05,freeze=h.0_x,bias=true"
    long = [row.folder for row in rows_of({"freeze": ["h." * 200 + end for end in "ab"]})]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 200


# The search -------------------------------------------------------------------------------------


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


# Going on ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(
    train: Any, resume: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(SWEEP).code == 0
    (tmp_path / "out").rename(tmp_path / "undisturbed")

    def stop(number: int, step: int) -> None:
        if number == 2 and step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        changed(patch, stop)
        answer = train(SWEEP)
    assert answer.code == 130
    assert "Run 3" not in answer.out
    assert "The sweep was stopped with 1 of 4 runs done. Continue with:" in answer.out
    assert f"train --sweep '{SWEEP}' --resume --out {tmp_path / 'out'}" in answer.out
    first, *others = (tmp_path / "out" / row["folder"] for row in rows(tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    answer = resume(SWEEP)
    assert answer.code == 0, answer.err
    assert "Run 1" not in answer.out
    assert "steps 8 to 12" in answer.out
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    for folder in (first, *others):
        assert_same_outcome(folder, tmp_path / "undisturbed" / folder.name)
    assert [row["loss"] for row in rows(tmp_path / "out")] == [row["loss"] for row in rows(tmp_path / "undisturbed")]


@pytest.mark.slow
def test_ctrl_c_while_a_run_is_built(train: Any, resume: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygpt.cli import train as command

    built: list[Any] = []

    def build(*arguments: Any) -> Any:
        built.append(arguments)
        if len(built) == 2:
            raise KeyboardInterrupt
        return make_model(*arguments)

    make_model = command.make_model
    with monkeypatch.context() as patch:
        patch.setattr(command, "make_model", build)
        answer = train("lr=0.01,0.02")
    assert answer.code == 130
    assert "The sweep was stopped with 1 of 2 runs done" in answer.out
    answer = resume("lr=0.01,0.02")
    assert (answer.code, "Run 1" in answer.out, "Run 2" in answer.out) == (0, False, True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_sweep_goes_on(train: Any, resume: Any, text: Path, tmp_path: Path) -> None:
    more = ["--steps=100", "--eval-every=50", "--checkpoint-every=20"]
    command = [sys.executable, "-m", "tinygpt", "train", *SHORT, *more, f"--data={text}", f"--out={tmp_path / 'out'}"]
    process = subprocess.Popen([*command, "--sweep", "lr=0.01,0.02"], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    index = tmp_path / "out" / "lr=0.02" / "checkpoints.json"
    deadline = time.monotonic() + 120
    while not index.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert [row["status"] for row in rows(tmp_path / "out")] == ["finished", "running"]
    assert resume("lr=0.01,0.02").code == 0
    killed = (tmp_path / "out").rename(tmp_path / "killed")
    assert train("lr=0.01,0.02", *more).code == 0
    assert_same_outcome(killed / "lr=0.02", tmp_path / "out" / "lr=0.02")


@pytest.mark.slow
def test_a_run_whose_folder_was_removed_is_made_again(train: Any, resume: Any, tmp_path: Path) -> None:
    assert train("lr=0.01,0.02").code == 0
    shutil.rmtree(tmp_path / "out" / "lr=0.01")
    answer = resume("lr=0.01,0.02")
    assert (answer.code, "Run 1 of 2" in answer.out, "Run 2" in answer.out) == (0, True, False)
    assert (tmp_path / "out" / "lr=0.01" / "checkpoints.json").exists()


@pytest.mark.slow
def test_another_sweep_is_refused(train: Any, resume: Any, run: Any, model: Path, tmp_path: Path) -> None:
    assert_one_sentence(resume("lr=0.01"), "there is no sweep in .*out to continue")
    assert train("lr=0.01").code == 0
    before = (tmp_path / "out" / "sweep.json").read_bytes()
    assert_one_sentence(train("lr=0.01"), "already holds a sweep: continue it with --resume")
    assert_one_sentence(train("lr=0.01", "--overwrite"), "leave out --overwrite")
    assert_one_sentence(resume("lr=0.01,0.02"), 'is another one, "lr=0.01": give that one')
    plain = run("train", "--resume", f"--out={tmp_path / 'out'}")
    assert_one_sentence(plain, "holds a sweep; continue it with .* train --sweep lr=0.01 --resume --out")
    assert_one_sentence(resume("lr=0.01", "--batch-size=5"), "has --batch-size 3, not 5: leave --batch-size out")
    assert_one_sentence(resume("lr=0.01", "--beta1=0.5"), "has --beta1 by default, not 0.5: leave --beta1 out")
    assert resume("lr=0.01", "--batch-size=3").code == 0
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before
    assert_one_sentence(run("train", f"--out={model}", "--sweep=lr=1"), "already holds a run: choose another --out")


def test_a_folder_in_the_way_is_said_before_the_first_run(train: Any, tmp_path: Path) -> None:
    (tmp_path / "out" / "lr=0.02").mkdir(parents=True)
    (tmp_path / "out" / "lr=0.02" / "metrics.jsonl").write_text("mine")
    assert_one_sentence(train("lr=0.01,0.02"), "lr=0.02 holds files that no run has written")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lr=0.02"]


@pytest.mark.slow
def test_only_one_process_makes_the_runs(train: Any, resume: Any, tmp_path: Path) -> None:
    assert train("lr=0.01").code == 0
    lock = Lock(tmp_path / "out" / ".tinygpt-lock")
    assert lock.take()
    assert_one_sentence(resume("lr=0.01"), "another run is using the folder")
    lock.give_back()


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../elsewhere"}, {"folder": ".."}, {"status": "won"}, {"loss": None}, {"loss": float("nan")},
        {"settings": {"lr": 5}}, {"more": 1},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    row = Row("lr=0.01", {"lr": 0.01}, "finished", 3.0, 5, 1.0)
    search = Search(tmp_path, "train", {"lr": [0.01]}, {}, [row])
    search.save()
    assert Search.load(tmp_path) == search
    state = json.loads((tmp_path / "sweep.json").read_text())
    state["rows"][0] |= change
    (tmp_path / "sweep.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"sweep.json is damaged"):
        Search.load(tmp_path)
    (tmp_path / "sweep.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"sweep.json is damaged"):
        Search.load(tmp_path)
