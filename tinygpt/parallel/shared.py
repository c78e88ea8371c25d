"""Memory that the processes of one machine share.

    memory = shared_bytes(team, 1 << 20)      # (1 << 20,) uint8, zeros; None if these processes can't share any

Process 0 makes a file that has no name in any folder (memfd_create), and the others open it through /proc. So there is
nothing to clean up: the memory is freed when the last array in it is gone, or the last process, however that ended. MPI
has shared memory too (MPI.Win.Allocate_shared), but its windows must be freed by all processes together, before MPI
shuts down and when no array uses them any more; Open MPI and MPICH keep them in files in /dev/shm, where containers by
default have room for 64 MB.

Linux only. Elsewhere, and where /proc does not let a process see another's files (separate containers, processes of
different users), there is none, and sums go by messages.
"""

from __future__ import annotations

import contextlib
import mmap
import os

import numpy as np

from .communicator import Communicator


def shared_bytes(team: Communicator, count: int) -> np.ndarray | None:
    """`count` bytes in memory of all processes of `team`, which are on one machine, or None. All of them call this."""
    name = team.share_value(f"tinygpt-{os.urandom(8).hex()}")
    descriptor, memory = -1, None
    if team.rank == 0:
        with contextlib.suppress(AttributeError, OSError):  # not Linux; no memory left
            descriptor = os.memfd_create(name)
            os.ftruncate(descriptor, count)
    process, number = team.share_value([os.getpid(), descriptor])
    with contextlib.suppress(OSError, ValueError):
        if team.rank > 0:
            descriptor = opened(f"/proc/{process}/fd/{number}", name)
        memory = mmap.mmap(descriptor, count)  # private memory if there is no file, which nobody then uses
    everywhere = all(team.gather_values(memory is not None and number >= 0))
    if descriptor >= 0:
        os.close(descriptor)
    return np.frombuffer(memory, np.uint8) if everywhere and memory is not None else None


def opened(path: str, name: str) -> int:
    """Open the file behind `path` if it has this name: here the process id may belong to another process. Raises
    OSError."""
    if name not in os.readlink(path):
        raise FileNotFoundError(path)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
