"""What the tests of the command line share; its fixtures are in conftest.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinygpt import cli


class Answer:
    """What a command came to: its exit code and what it printed."""

    def __init__(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        self.code = ended.value.code or 0
        self.out, self.err = capsys.readouterr()


def assert_one_sentence(answer: Answer, words: str, code: int = 2) -> None:
    assert answer.code == code, answer.err
    lines = [line for line in answer.err.splitlines() if not line.startswith("step ")]  # the progress
    assert len(lines) == 1, answer.err
    assert re.search(words, lines[0]), answer.err
    assert "Traceback" not in answer.err


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to
