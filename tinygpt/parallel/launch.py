"""Which communicator this process has: MPI's if a launcher started several processes, else that of a single process.

Launchers set environment variables for the processes that they start. So a program that runs alone never imports
mpi4py, which takes a moment, and never starts MPI.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

from ..errors import UsageError
from .communicator import Communicator

# (rank, number of processes), as the launchers call them: Open MPI; MPICH, Intel MPI and srun's PMI; MVAPICH; srun's
# PMIx.
VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
)

_current: Communicator | None = None


def launched() -> tuple[int, int]:
    """(rank, number of processes) according to the launcher; (0, 1) without one."""
    for rank_name, size_name in VARIABLES:
        rank, size = os.environ.get(rank_name, ""), os.environ.get(size_name, "")
        if rank.isdecimal() and size.isdecimal():
            return int(rank), int(size)
    return 0, 1


def alone_under_launcher() -> bool:
    """Whether a launcher has started this process, and no other: `mpirun -n 1`."""
    return launched()[1] == 1 and any(os.environ.get(size_name) == "1" for _, size_name in VARIABLES)


def current() -> Communicator:
    """The communicator of this process. The first call starts MPI if several processes were launched.

    Raises MissingExtraError without mpi4py or an MPI library, UsageError if these are not the launcher's.
    """
    global _current
    if _current is None:
        _current = _make()
    return _current


def use(communicator: Communicator | None) -> None:
    """Make this the communicator that `current` returns; None: find out again. For tests, and for other launchers."""
    global _current
    _current = communicator


def rank() -> int:
    """The number of this process, from 0; 0 without mpirun."""
    return current().rank


def size() -> int:
    """How many processes share the run; 1 without mpirun."""
    return current().size


def _make() -> Communicator:
    _, size = launched()
    if size == 1:
        return Communicator()
    from .mpi import Mpi

    found = Mpi()
    if found.size != size:
        raise UsageError(
            f"the launcher started {size} processes, but mpi4py sees {found.size}: its MPI library is not the "
            f"launcher's ({found.mpi.Get_library_version().splitlines()[0].strip()}): start the run with the mpirun of "
            "that library"
        )
    _end_all_on_errors(found)
    return found


def _end_all_on_errors(team: Communicator) -> None:
    """Let an uncaught error end all processes: otherwise its process would wait for the others when MPI shuts down, and
    they for it."""
    before = sys.excepthook

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        if not hasattr(sys, "ps1"):  # an interactive session goes on
            team.end_all(1)

    sys.excepthook = end
