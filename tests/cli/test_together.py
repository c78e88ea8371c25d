"""`mpirun tinygpt train`: what can be said without several processes."""

from __future__ import annotations

import os

import pytest

from tinygpt.cli.together import binding_note
from tinygpt.parallel import alone_under_launcher


@pytest.mark.parametrize(
    ("cores", "words"),
    [
        ([[3]], "lets this process use 1 of 8 cores: mpirun --map-by slot:PE=8 gives it 8"),
        ([[0], [1]], "use 2 of 8 cores: mpirun --map-by slot:PE=4 gives each 4"),
        ([[0], [0]], "use 1 of 8 cores"),
        ([[*range(8)]], ""),
        ([[*range(8)]] * 2, ""),
        ([[0, 1], [2, 3], [4, 5]], ""),  # two are left over, too few to give each of them one more
    ],
)
def test_cores_that_are_left_over(monkeypatch: pytest.MonkeyPatch, cores: list[list[int]], words: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert words in binding_note(cores)
    assert bool(binding_note(cores)) == bool(words)


def test_where_nobody_knows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert binding_note([[0]]) == ""


def test_alone_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    assert not alone_under_launcher()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert alone_under_launcher()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert not alone_under_launcher()
