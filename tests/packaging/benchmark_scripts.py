"""The scripts in benchmarks/: as modules, and run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.modules import module_in
from tinygpt.backends import get

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
needs_extension = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")


def script(name: str) -> ModuleType:
    """A benchmark as a module."""
    return module_in(BENCHMARKS, name)


def run(name: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
