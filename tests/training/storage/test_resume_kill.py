"""A run killed with SIGKILL at twenty random moments and resumed each time ends as an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Process
from tests.training.helpers import ENVIRONMENT, OPTIONS, assert_same_outcome, write_text
from tinygpt.interop import load
from tinygpt.training import CheckpointFolder

KILLS, STEPS = 20, 600
# A checkpoint at every step: nearly all of the time goes into writing, so that is where most of the kills land.
RUN = [sys.executable, "-m", "tinygpt", "train", *OPTIONS, f"--steps={STEPS}", "--checkpoint-every=1", "--eval-every=7"]


def step_of(folder: Path) -> int:
    """The step of the latest checkpoint; -1 before the first."""
    try:
        return json.loads((folder / "checkpoints.json").read_text(encoding="utf-8"))["latest"]["step"]
    except FileNotFoundError:
        return -1


def start(folder: Path, text: Path, log: Path) -> subprocess.Popen[bytes]:
    resume = ["--resume"] if step_of(folder) >= 0 else []
    with open(log, "ab") as file:
        command = [*RUN, f"--data={text}", f"--out={folder}", *resume]
        return subprocess.Popen(command, stdout=file, stderr=file, env=ENVIRONMENT)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_twenty_times(tmp_path: Path) -> None:
    text, log, dice = write_text(tmp_path / "verse.txt"), tmp_path / "log.txt", random.Random(20)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed, text, log).wait(timeout=120) == 0, log.read_text()

    for kill in range(KILLS):
        process = start(killed, text, log)
        # Either within a few steps, at any moment of a step; or anywhere: while Python starts, while the checkpoint
        # is read, while training.
        patience = dice.uniform(0.0, 0.6) if kill % 5 == 4 else 60.0
        goal, deadline = step_of(killed) + dice.randint(1, 8), time.monotonic() + patience
        while step_of(killed) < goal and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.uniform(0.0, 0.02))
        process.kill()
        code = process.wait(timeout=60)
        assert code == -signal.SIGKILL, f"kill {kill} came too late, at step {step_of(killed)}:\n{log.read_text()}"
    assert 0 < step_of(killed) < STEPS

    assert start(killed, text, log).wait(timeout=120) == 0, log.read_text()
    assert_same_outcome(killed, undisturbed)
    assert not list(killed.glob(".checkpoint*.tmp")), "half-written files of killed processes are left over"


# New runs, one after the other, each over the one before it: texts of different characters, so that a tokenizer, tokens
# and a checkpoint of two runs do not fit together.
OVERWRITE_AGAIN_AND_AGAIN = """
import contextlib, sys
from tinygpt import cli
number = int(sys.argv[3])
while True:
    data = f"--data={sys.argv[2]}/{'abc'[number % 3]}.txt"
    with contextlib.suppress(SystemExit):
        cli.main(["train", *sys.argv[4:], data, f"--out={sys.argv[1]}", f"--seed={number}", "--overwrite"])
    print(f"done {number}", flush=True)
    number += 1
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_while_a_new_run_takes_the_place(tmp_path: Path) -> None:
    folder, dice = tmp_path / "run", random.Random(4)
    for name, letters in (("a", "ab\n"), ("b", "bcdefgh\n"), ("c", "cdefghijklmnopqrstuv\n")):
        (tmp_path / f"{name}.txt").write_text(letters * 4000, encoding="utf-8")
    options = [*OPTIONS, "--steps=2", "--warmup-steps=1"]
    number = 0
    for kill in range(4):
        command = [sys.executable, "-c", OVERWRITE_AGAIN_AND_AGAIN, str(folder), str(tmp_path), str(number), *options]
        with Process(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("done "):
                    number = int(line.split()[1]) + 1
                    if dice.random() < 0.4:
                        break
            time.sleep(dice.uniform(0, 0.15))
            process.kill()
        assert process.returncode == -signal.SIGKILL, kill
        model, tokenizer = load(folder)
        seed = CheckpointFolder(folder).load("best").state["training_config"]["seed"]
        assert seed in (number - 1, number)
        assert tokenizer.vocab_size == model.config.vocab_size == (3, 8, 21)[seed % 3]
        if kill % 2:  # the next command works
            resumed = subprocess.run(
                [sys.executable, "-m", "tinygpt", "train", "--resume", f"--out={folder}"],
                env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert resumed.returncode == 0, resumed.stderr
            assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
