"""Ctrl-C while a text is encoded: one sentence, no file that is half written, no process that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Process
from tests.training.helpers import ENVIRONMENT, OPTIONS, VERSE
from tinygpt.tokenizers import BPETokenizer

COMMANDS = {
    "tokenize": ["tokenize", "-", "--tokenizer=byte"],
    "tokenize, BPE": ["tokenize", "-", "--tokenizer=bpe-folder"],
    "train": ["train", "-", *OPTIONS],
    "train, over an older run": ["train", "-", *OPTIONS, "--overwrite"],
    "train, to learn BPE": ["train", "-", *OPTIONS, "--tokenizer=bpe", "--vocab-size=300"],
}
# As from a terminal, whatever the shell that started the tests does with signals in the background.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from tinygpt.cli import main; main()"
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to send a signal to")
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_left(name: str, tmp_path: Path) -> None:
    """The text comes from a pipe that does not end, so the command can't be done before."""
    command, out, temporary = COMMANDS[name], tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    if "BPE" in name:
        pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
        (tmp_path / "bpe-folder").mkdir()
        BPETokenizer.train(VERSE, 270).save(tmp_path / "bpe-folder")
    environment = ENVIRONMENT | {"TMPDIR": str(temporary), "TINYGPT_NUM_THREADS": "3"}
    before: dict[str, bytes] = {}
    if "older" in name:
        made = [sys.executable, "-m", "tinygpt", "train", "-", *OPTIONS, f"--out={out}"]
        subprocess.run(made, input=(VERSE * 20).encode(), env=environment, check=True, capture_output=True)
        before = files_in(out)
        assert before
    words = [sys.executable, "-c", START, *command, f"--out={out}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(words, cwd=tmp_path, env=environment, start_new_session=True, **pipes) as process:
        process.stdin.write((VERSE * 100_000).encode())  # 9 MB
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not begun(tmp_path, before) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        assert begun(tmp_path, before)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        out_text, err_text = process.communicate(timeout=60)
    assert process.returncode == 130, err_text
    assert [line for line in err_text.decode().splitlines() if not line.startswith("Tokens:")] == ["-c: stopped"]
    assert b"Traceback" not in out_text
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert files_in(out) == before
    assert out.exists() == bool(before)
    assert not list(temporary.iterdir())


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of each file; of each folder that it is there."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


def begun(folder: Path, before: dict[str, bytes]) -> bool:
    """Whether a file is being written: tokens, or the copy of a text that is read twice."""
    for path in folder.rglob("*.tmp*"):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        if any(file.stat().st_size > 1000 for file in files if file.exists()):
            return True
    return False
