"""A script at one level of the compiled kernels, in a process of its own: the level is chosen when they are loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinygpt._ext import LEVELS, built, load

ROOT = Path(__file__).parents[2]
NAMED = [level for level in LEVELS if level != "native"]


def output_at(level: str, script: str) -> str:
    """What the script prints. The test is skipped where the processor or the build lacks the level."""
    if load() is None:
        pytest.skip("extension not built")
    from tinygpt._ext import levels

    if level not in levels.supported():
        pytest.skip(f"this processor lacks {level}")
    if not built(level):
        pytest.skip(f"the level {level} was not built: TINYGPT_LEVELS=all builds all")
    environment = {**os.environ, "TINYGPT_LEVEL": level, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, level]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
