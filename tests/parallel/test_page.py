"""docs/more_than_one_machine.md: its commands run, on one machine and on a small model."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.packaging.benchmark_scripts import script
from tests.parallel.test_command import SETTINGS, saved
from tests.parallel.together import LIMIT, OPTIONS, environment, mpirun_path, needs_mpi, together
from tests.processes import run_within
from tests.training.helpers import write_text
from tinygpt.cli import OptionParser
from tinygpt.cli.train import add_options

PAGE = Path(__file__).parents[2] / "docs" / "more_than_one_machine.md"
ELSEWHERE = {"--host": 1, "--map-by": 1}  # what needs other machines, or more cores: option -> number of values


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line[0] in ("mpirun", "tinygpt")]


def small(line: list[str]) -> list[str]:
    """The command, on this machine and on a model that takes a moment."""
    words = ["my.txt" if word == "/shared/my.txt" else word for word in line]
    for option, values in ELSEWHERE.items():
        if option in words:
            place = words.index(option)
            del words[place : place + 1 + values]
    place = words.index("tinygpt")
    before, after = words[:place], words[place + 1 :]
    if before:
        before = [str(mpirun_path()), *OPTIONS, *before[1:]]
    if "--resume" not in after:
        after += ["--overwrite", "--steps=40", *(word for word in SETTINGS if "batch-size" not in word)]
    return [*before, sys.executable, "-m", "tinygpt", *after]


def test_what_the_page_names_is_there() -> None:
    parser = OptionParser()
    add_options(parser)
    known = {name for action in parser._actions for name in action.option_strings}
    text = PAGE.read_text(encoding="utf-8")
    said = {word for line in commands() for word in line[line.index("tinygpt") :] if word.startswith("--")}
    said |= set(re.findall(r"`(--(?!oversubscribe)[a-z-]+)", text))
    assert said - known == set()
    assert len(commands()) == 6
    assert (PAGE.parents[1] / "benchmarks" / "scaling.py").exists()


def test_the_table_is_what_the_model_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "\n".join(script("processes_model").table()) in text


@needs_mpi
@pytest.mark.slow
def test_the_memory_is_what_the_benchmark_says() -> None:
    found = json.loads(
        together(2, str(PAGE.parents[1] / "benchmarks" / "processes_work.py"), "memory", "baby", "1", "0", "2")
    )
    figures = [number / 1e6 for number in (*found["sharded"], found["whole"])]
    assert [f"{number:.1f}" for number in figures] == ["43.0", "43.0", "86.0"]
    assert "43.0 MB on each of two, instead of 86.0" in PAGE.read_text(encoding="utf-8")


@needs_mpi
@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    write_text(tmp_path / "my.txt", 60)
    for line in commands():
        done = run_within(small(line), LIMIT, cwd=tmp_path, env=environment())
        assert done.returncode == 0, (line, done.stderr[-2000:])
    assert saved(tmp_path / "run") == 80
