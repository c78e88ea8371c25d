"""Fixtures of the files about --sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.trials.helpers import SHORT


@pytest.fixture
def train(run: Any, text: Path, tmp_path: Path) -> Any:
    """train("lr=1,2", ...) -> Answer, of a sweep in tmp_path / "out"."""
    return lambda asked, *more: run(
        "train", *SHORT, f"--data={text}", f"--out={tmp_path / 'out'}", f"--sweep={asked}", *more
    )


@pytest.fixture
def resume(run: Any, tmp_path: Path) -> Any:
    return lambda asked, *more: run("train", "--resume", f"--out={tmp_path / 'out'}", f"--sweep={asked}", *more)
