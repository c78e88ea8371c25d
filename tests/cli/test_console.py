"""A reader, a terminal or a disk that goes away: what is printed is lost, and nothing else is."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Process
from tests.training.helpers import ENVIRONMENT, OPTIONS, make_trainer
from tinygpt import console
from tinygpt.training import CheckpointFolder

TINYGPT = [sys.executable, "-m", "tinygpt"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX pipes, signals and shells")


class Broken(io.StringIO):
    """Takes so many writes, and then fails."""

    def __init__(self, error: Exception, writes: int = 2) -> None:
        super().__init__()
        self.error, self.left = error, writes

    def write(self, words: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(words)

    def isatty(self) -> bool:
        return True


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=["reader", "terminal", "disk", "closed"])
def test_a_run_whose_progress_nobody_sees_ends_as_any_other(tmp_path: Path, error: Exception) -> None:
    trainer = make_trainer(tmp_path)
    trainer.stream = Broken(error)
    assert trainer.run().step == 20
    assert trainer.stream.left < 0  # it did break
    assert CheckpointFolder(tmp_path).load().step == 20


class Bare:
    """All that a stream needs."""

    words = ""

    def write(self, words: str) -> None:
        self.words += words


def test_a_stream_needs_write_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=5)
    trainer.stream = Bare()
    assert trainer.run().step == 5
    assert "step 5: validation loss" in trainer.stream.words


def test_a_run_without_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program without a window, or after `2>&-`."""
    monkeypatch.setattr(sys, "stderr", None)
    trainer = make_trainer(tmp_path)
    trainer.stream = None
    trainer.callbacks.append(lambda record: signal.raise_signal(signal.SIGINT) if record["step"] == 9 else None)
    assert trainer.run().step == 9
    assert list(console.bar(range(3), "counting")) == [0, 1, 2]


def test_a_full_disk_that_gets_room_again_shows_the_rest() -> None:
    stream = Broken(OSError(errno.ENOSPC, "No space left on device"), writes=1)
    lenient = console.Lenient(stream)
    lenient.write("a"), lenient.write("b")
    stream.left = 1
    lenient.write("c")
    assert stream.getvalue() == "ac"


# Processes --------------------------------------------------------------------------------------


def tinygpt(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    settings = {"env": ENVIRONMENT, "stderr": subprocess.PIPE} | settings
    return subprocess.run([*TINYGPT, *arguments], text=True, timeout=60, check=False, **settings)


def broken_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
@posix
def test_a_run_whose_output_nobody_reads_is_trained(text: Path, tmp_path: Path) -> None:
    """`tinygpt train ... 2>&1 | true`: the exit code 0 means that it was."""
    gone = broken_pipe()
    done = tinygpt("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", stdout=gone, stderr=gone)
    os.close(gone)
    assert done.returncode == 0
    assert CheckpointFolder(tmp_path / "run").load().step == 12


@pytest.mark.slow
@posix
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_help_that_is_not_read_to_its_end(words: list[str]) -> None:
    gone = broken_pipe()
    done = tinygpt(*words, stdout=gone)
    os.close(gone)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_could_not_be_written_is_a_sentence(model: Path) -> None:
    with open("/dev/full", "w") as full:
        done = tinygpt("eval", f"--model={model}", stdout=full)
        assert tinygpt("eval", "--batch-size=0", f"--model={model}", stdout=full, stderr=full).returncode == 2
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


@pytest.mark.slow
@posix
def test_what_is_for_stderr_goes_into_no_other_file(text: Path, tmp_path: Path) -> None:
    """With 2 closed, the metrics would get that number; the words about a signal would land in them."""
    folder = tmp_path / "run"
    options = [*OPTIONS, "--steps=1000000", "--log-every=1", "--eval-every=1000000", "--checkpoint-every=1000000"]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *TINYGPT, "train", *options, f"--data={text}", f"--out={folder}"]
    with Process(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        wait_for(folder / "metrics.jsonl", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    done = tinygpt("sample", f"--model={folder}", "--stats", "--max-new-tokens=3", "--seed=0", stdout=subprocess.PIPE)
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *done.args], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert "tokens/s" in done.stderr
    assert closed.stdout == done.stdout
    assert subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *TINYGPT, "eval", f"--model={folder}"], capture_output=True,
        env=ENVIRONMENT, check=False,
    ).stdout.startswith(b"loss ")  # without a bar  # fmt: skip


def wait_for(metrics: Path, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and '"loss"' in metrics.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"no step was made: {process.poll()}")


@pytest.mark.slow
@posix
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_saves_the_run_unless_that_is_ignored(text: Path, tmp_path: Path, ignored: bool) -> None:
    """It may be told twice: by the kernel, and by the shell that passes it on."""
    folder = tmp_path / "run"
    options = [*OPTIONS, "--steps=1000000", "--eval-every=1000000", "--checkpoint-every=1000000"]
    start = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"] if ignored else []
    command = [*start, *TINYGPT, "train", *options, f"--data={text}", f"--out={folder}"]
    with Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        wait_for(folder / "metrics.jsonl", process)
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
        if ignored:
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + (signal.SIGTERM if ignored else signal.SIGHUP)
    assert CheckpointFolder(folder).load().step > 0


@pytest.mark.slow
@posix
@pytest.mark.parametrize("module", ["numpy", "tqdm"])
def test_ctrl_c_while_the_command_imports(tmp_path: Path, module: str) -> None:
    """numpy is the first that takes time, tqdm comes with the options of `train`."""
    stub = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    (tmp_path / f"{module}.py").write_text(stub)
    (tmp_path / "tinygpt").write_text("from tinygpt.cli import main\nmain()\n")  # as pip's script
    (tmp_path / "mine").write_text("try: import tinygpt.training\nexcept KeyboardInterrupt: print('mine')\n")
    env = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])}
    for program, code, out in (
        (["-m", "tinygpt"], -signal.SIGINT, ""),  # 130 in a shell
        ([str(tmp_path / "tinygpt")], -signal.SIGINT, ""),
        ([str(tmp_path / "mine")], 0, "mine\n"),  # a program of one's own handles it itself
    ):
        command = [sys.executable, *program, "train", "--steps=1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, out, "")


def test_an_unknown_option_names_the_help_that_lists_the_options(run: Any) -> None:
    answer = run("train", "--max-iters=10")
    assert answer.code == 2
    assert answer.err == "tinygpt train: unrecognized arguments: --max-iters=10 (see tinygpt train --help)\n"


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (25e6, "25 MB"), (3.2e12, "3200 GB")]
)
def test_sizes_in_words(size: float, words: str) -> None:
    assert console.in_bytes(size) == words
