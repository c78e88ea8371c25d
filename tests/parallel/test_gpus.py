"""The body on NCCL, over the stand-in of CuPy: real processes, whose arrays lie in the host's memory.

What this can't show: anything that NCCL itself does. Streams of the stand-in compute at once, so a missing wait is not
noticed; nor are NCCL's order of additions, its speed, and what it does when a process dies.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.test_command import SHORT, TRAIN, done, ours
from tests.parallel.together import needs_mpi, together
from tests.training.helpers import write_text

NO_CUPY = (
    "import sys; sys.argv[0] = 'tinygpt'; sys.modules['cupy'] = None; from tinygpt import cli; cli.main(sys.argv[1:])"
)
pytestmark = [needs_mpi, pytest.mark.slow]


@pytest.mark.parametrize("processes", [2, 3])
def test_over_the_standin(tmp_path: Path, processes: int) -> None:
    together(processes, "-m", "tests.parallel.roles", "gpus", str(tmp_path))


def test_without_a_gpu(tmp_path: Path) -> None:
    """One sentence, from process 0."""
    write_text(tmp_path / "verse.txt")
    result = done(tmp_path, (2, ["-c", NO_CUPY, *TRAIN[2:], *SHORT, "--backend=cupy"]))
    assert result.returncode != 0
    assert len(ours(result)) == 1
    assert "the backend 'cupy' needs CuPy" in ours(result)[0]
