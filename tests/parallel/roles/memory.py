"""The memory that the processes share, and the pages of what each has for itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.roles import work
from tinygpt.parallel import shared
from tinygpt.parallel.communicator import Room
from tinygpt.parallel.mpi import Mpi
from tinygpt.parallel.sums import SharedRoom


@work
def shared_memory(team: Mpi) -> None:
    """What one writes the others read; it is gone with its last array; without it there are rooms of the plain kind."""
    memory = shared.shared_bytes(team, 1000)
    assert memory is not None
    assert not memory.any()
    team.barrier()
    memory[team.rank] = team.rank + 1
    team.barrier()
    assert memory[: team.size].tolist() == [*range(1, team.size + 1)]
    half = memory[500:]
    del memory
    assert mappings() == 1
    assert not list(Path("/dev/shm").glob("*tinygpt*"))
    del half
    assert mappings() == 0
    like = np.zeros(0, np.float32)
    assert len(team.rooms([])) == 0
    with pytest.MonkeyPatch.context() as patch:  # one process can't open the file
        if team.rank == team.size - 1:
            patch.setattr(shared, "opened", missing)
        assert shared.shared_bytes(team, 1000) is None
        assert all(type(room) is Room for room in team.rooms([(team.size, like)]))
    with pytest.MonkeyPatch.context() as patch:  # process 0 can't make it
        patch.delattr(os, "memfd_create")
        assert shared.shared_bytes(team, 1000) is None
    team.local_size -= 1  # on two machines
    assert all(type(room) is Room for room in team.rooms([(team.size, like)]))
    team.local_size += 1
    assert all(type(room) is SharedRoom for room in team.rooms([(team.size, like)]))
    assert mappings() == 0
    assert not [path for path in Path("/proc/self/fd").iterdir() if "tinygpt-" in target_of(path)]


def mappings() -> int:
    """How much of what this process shares is still there."""
    return Path("/proc/self/maps").read_text().count("memfd:tinygpt-")


def target_of(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # that of the folder, which is closed by now
        return ""


def missing(*_: str) -> int:
    raise FileNotFoundError


@work
def huge_pages(team: Mpi) -> None:
    """Arrays too small for NumPy to ask for huge pages have them all the same, but for the first, which may begin
    before the first huge page."""
    _, small = (np.ones(3 << 20, np.uint8) for _ in range(2))
    flags, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, last = line.split(" ")[0].partition("-")
        if last:
            inside = int(first, 16) <= small.ctypes.data < int(last, 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()
    assert "hg" in flags, flags
