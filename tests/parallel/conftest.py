"""No test here may leave processes behind: mpirun's go on if only mpirun is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.parallel.together import left_behind


@pytest.fixture(autouse=True)
def nobody_is_left_behind() -> Iterator[None]:
    yield
    if sys.platform.startswith("linux"):
        found = left_behind()
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        assert not found, f"the processes {found} went on after the test, and were killed"
