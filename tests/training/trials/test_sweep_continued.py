"""--sweep with --resume: it goes on where it was stopped or killed, and no other search takes its folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import ENVIRONMENT, assert_same_outcome
from tests.training.trials.helpers import SHORT, SWEEP, changed, rows
from tinygpt.errors import CheckpointError
from tinygpt.lock import Lock
from tinygpt.training.trials.sweep import Row, Search

pytestmark = pytest.mark.usefixtures("without_picture")


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
