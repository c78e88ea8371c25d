"""Runs on several processes: the same run, whatever their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.together import needs_mpi, together

pytestmark = [needs_mpi, pytest.mark.slow]

# After 200 steps of SGD the losses, about 2.4, differ from those of one process by no more than this: the gradient of a
# batch is added up in another order, and each step passes its rounding on to the next.
BOUND = 2e-6


def run(processes: int, folder: Path, kind: str, steps: int) -> Any:
    words = together(processes, "-m", "tests.parallel.roles", "the_run_of_one_process", str(folder), kind, str(steps))
    return json.loads(words)


def test_200_steps(tmp_path: Path) -> None:
    """With dropout; and the same number of processes gives the same bits again."""
    found = run(2, tmp_path, "plain", 200)
    assert found["losses"] < BOUND
    (tmp_path / "again").mkdir()
    assert run(2, tmp_path / "again", "plain", 200) == found


@pytest.mark.parametrize(
    ("processes", "kind"),
    [(3, "ignored"), (4, "accumulated"), (3, "sharded"), (2, "adamw"), (2, "frozen"), (2, "average")],
)
def test_the_run_of_one_process(tmp_path: Path, processes: int, kind: str) -> None:
    assert run(processes, tmp_path, kind, 50)["losses"] < BOUND
