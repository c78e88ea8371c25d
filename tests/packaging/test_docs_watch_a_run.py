"""docs/watch_a_run.md: its Python runs as it stands, and its commands have the options that it names."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.test_readme import blocks
from tinygpt.cli.parser import OptionParser

PAGE = "docs/watch_a_run.md"


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinygpt.training.monitoring.reporting.draw_loss_curve", lambda *paths: None)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(PAGE, "python"):
        exec(compile(block, PAGE, "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in lines[:2]] == ["2", "4"]
    assert eval(lines[0].split(" ", 1)[1]).keys() == {"gradient", "weight", "update", "ratio"}
    assert lines[2:] == ["True"]


@pytest.mark.parametrize("line", "".join(blocks(PAGE, "sh")).splitlines())
def test_commands(line: str) -> None:
    program, command, *arguments = shlex.split(line)
    assert program == "tinygpt"
    options = OptionParser(source=f"tinygpt.cli.{command}").parse_args(arguments)
    assert callable(options.run)
