"""Memory that processes share: it is theirs alone, it is given back, and where there is none, sums go by messages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.parallel.together import needs_mpi, together
from tinygpt.parallel.shared import opened


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared on Linux only")
def test_only_the_file_of_this_name_is_opened() -> None:
    """In a container the process of this number may be another's, with another file of this number."""
    mine = os.memfd_create("tinygpt-abc")
    path = f"/proc/{os.getpid()}/fd/{mine}"
    try:
        os.close(opened(path, "tinygpt-abc"))
        with pytest.raises(FileNotFoundError):
            opened(path, "tinygpt-abd")
    finally:
        os.close(mine)
    with pytest.raises(FileNotFoundError):
        opened(path, "tinygpt-abc")


@needs_mpi
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="memory is shared on Linux only")
@pytest.mark.parametrize("processes", [2, 3])
def test_shared_memory(processes: int) -> None:
    together(processes, "-m", "tests.parallel.work", "shared_memory")
