"""The main job, `tinygpt train --preset tiny`, on two processes: the run of one, also if a process is killed in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.test_command import is_free, line, losses, ranks_of, saved, wait_until
from tests.parallel.together import LIMIT, environment, needs_mpi
from tests.processes import Process, run_within
from tests.training.helpers import write_text

pytestmark = [needs_mpi, pytest.mark.slow]

STEPS, KILLED_AFTER = 60, 12
TRAIN = ["-m", "tinygpt", "train"]
MAIN = [
    *TRAIN, "--preset=tiny", "--data=verse.txt", "--n-layer=2", "--n-embd=64", f"--steps={STEPS}", "--warmup-steps=10",
    "--eval-every=20", "--eval-batches=2", "--checkpoint-every=5", "--log-every=1", "--final-eval=none",
]  # fmt: skip
# Of losses between 3.5 and 1: AdamW divides by gradients, so it passes on more rounding than SGD (`test_runs.py`).
BOUND = 2e-5


def test_the_main_job(tmp_path: Path) -> None:
    """SIGKILL on one of two processes; then on with 1, 2 and 3, to the losses that one process had."""
    write_text(tmp_path / "verse.txt", 60)
    options = {"cwd": tmp_path, "env": environment()}
    alone = run_within([sys.executable, *MAIN, "--out=alone"], LIMIT, **options)
    assert alone.returncode == 0, alone.stderr
    expected = losses(tmp_path / "alone")
    assert expected[1] - expected[STEPS] > 1

    run = tmp_path / "run"
    with Process(
        line((2, [*MAIN, "--out=run"])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    ) as process:
        wait_until(lambda: (run / "metrics.jsonl").exists() and max(losses(run), default=0) > KILLED_AFTER, process)
        os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
        said = process.communicate(timeout=LIMIT)[0]
    assert process.returncode != 0
    assert "rank 1" in said
    wait_until(lambda: is_free(run))
    assert KILLED_AFTER <= saved(run) < STEPS

    for processes in (1, 2, 3):
        folder = tmp_path / f"on-{processes}"
        shutil.copytree(run, folder)
        on = run_within(line((processes, [*TRAIN, "--resume", f"--out={folder.name}"])), LIMIT, **options)
        assert on.returncode == 0, on.stderr
        found = losses(folder)
        assert found.keys() == expected.keys()
        assert max(abs(found[step] - loss) for step, loss in expected.items()) < BOUND
