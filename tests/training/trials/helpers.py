"""What the files about --sweep share: a small search, its table, and what happens before a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import OPTIONS
from tinygpt.training import Trainer
from tinygpt.training.step.steps import Steps

SWEEP = "lr=1e-4,0.02 dropout=0,0.1"
SHORT = [option for option in OPTIONS if not option.startswith(("--lr", "--dropout"))]


def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["rows"]


def changed(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Call act(number of the trainer, step) before each step."""
    trainers: list[Trainer] = []
    step = Steps.step

    def acted(steps: Steps) -> float:
        trainer = steps.trainer
        if trainer not in trainers:
            trainers.append(trainer)
        act(len(trainers), trainer.state.step)
        return step(steps)

    monkeypatch.setattr(Steps, "step", acted)
