"""What the folder of a run reveals: its settings, its figures over time, its samples, its layers, how it ended.

    runs = find_runs(["out/sweep", "out/other"])         # a folder that holds runs stands for all of them

A run may be in progress, killed, resumed, or older than some of these records; what is missing is left out. Nothing is
locked or changed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import INDEX, read_checkpoint, read_index
from ..errors import CheckpointError, UsageError
from ..files import explain_os_errors, shown, user_path
from ..lock import holder_of
from ..training.storage.folder import CONFIGURATION, LOCK, METRICS

Point = tuple[int, float]
_TRIES = 3  # a run that is under way replaces its checkpoint now and then


@dataclass
class Records:
    """The content of a metrics file.

    figures: name -> step -> value, of every number in it. samples: step -> text. layers: step -> layer -> norm -> value
    (`training/monitoring/layer_norms.py`). changes: step -> setting -> (before, now). damaged: lines that are
    not records.
    """

    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    samples: dict[int, str] = field(default_factory=dict)
    layers: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    changes: dict[int, dict[str, Any]] = field(default_factory=dict)
    damaged: int = 0
    last: int = 0  # step

    def of(self, name: str) -> list[Point]:
        """A figure over the steps."""
        return list(self.figures.get(name, {}).items())

    def add(self, record: dict[str, Any]) -> None:
        """Add a record. One of an earlier step is from a resumed run: the later records are dropped."""
        step = record["step"]
        if step < self.last:
            over_time: list[dict[int, Any]] = [*self.figures.values(), self.samples, self.layers, self.changes]
            for kept in over_time:
                for later in [s for s in reversed(kept) if s >= step]:
                    del kept[later]
        self.last = step
        for name, value in record.items():
            if type(value) in (int, float) and name != "step" and math.isfinite(value):
                self.figures.setdefault(name, {})[step] = float(value)
        if isinstance(record.get("sample"), str):
            self.samples[step] = record["sample"]
        if isinstance(record.get("changed"), dict):
            self.changes[step] = record["changed"]
        if isinstance(record.get("layers"), dict):
            self.layers[step] = {str(name): _norms(row) for name, row in record["layers"].items()}


def _norms(row: Any) -> dict[str, float]:
    found = row.items() if isinstance(row, dict) else ()
    return {str(name): float(x) for name, x in found if type(x) in (int, float) and math.isfinite(x)}


def read_records(path: Path) -> Records:
    """The records of a metrics file. Other lines are counted, except an unfinished last one, which is being written."""
    found = Records()
    with explain_os_errors("read", path), open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line.decode("utf-8"))
                if type(record["step"]) is not int or record["step"] < 0:
                    raise ValueError
            except (ValueError, KeyError, TypeError, RecursionError):
                found.damaged += line.endswith(b"\n")
                continue
            if line.endswith(b"\n"):
                found.add(record)
    return found


@dataclass
class Run:
    """One run. name: what the report calls it. settings: those in the folder, by name. state: that of its latest
    checkpoint, empty if that can't be read."""

    folder: Path
    name: str
    records: Records
    settings: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    holder: str | None = None  # who is writing it now

    @property
    def steps(self) -> int | None:
        """The number of steps that the run was started with."""
        steps = self.settings.get("steps")
        return steps if type(steps) is int else None

    @property
    def best(self) -> tuple[int, float] | None:
        """The step of the lowest validation loss, and that loss."""
        points = self.records.of("validation_loss")
        return min(points, key=lambda point: point[1]) if points else None

    def total(self, name: str) -> float | None:
        """The last value of a figure that counts up."""
        points = self.records.of(name)
        return points[-1][1] if points else None

    @property
    def progress(self) -> str:
        """Whether the run has ended, and where."""
        of = "" if self.steps is None else f" of {self.steps:,}"
        if self.holder is not None:
            return f"running, at step {self.records.last:,}{of} ({self.holder})"
        if self.steps is not None and self.records.last >= self.steps:
            return f"finished, {self.steps:,} steps"
        patience = self.settings.get("patience") or 0
        progression = self.state.get("progression")
        waited = progression.get("without_improvement") if isinstance(progression, dict) else None
        if type(patience) is type(waited) is int and 0 < patience <= waited:
            return f"stopped early at step {self.records.last:,}{of}"
        return f"ended at step {self.records.last:,}{of}"


# Folders ----------------------------------------------------------------------------------------------


def find_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in these folders, each of them once. A folder that is not a run but holds runs (of a sweep, of folds)
    stands for those. Raises UsageError."""
    places: dict[Path, Path] = {}
    for given in folders:
        for folder in _run_folders(user_path(given)):
            places.setdefault(folder.resolve(), folder)
    runs = [read_run(folder) for folder in places.values()]
    with_records = [run for run in runs if run.records.figures or run.records.layers or run.records.samples]
    if not with_records:
        raise UsageError(
            f"{shown(runs[0].folder / METRICS)} has no records{' yet' if runs[0].holder else ''}: a run writes them "
            "every --log-every steps and at evaluations"
        )
    for run, name in zip(with_records, _names([run.folder.resolve() for run in with_records]), strict=True):
        run.name = name
    return with_records


def _run_folders(folder: Path) -> list[Path]:
    if not folder.exists():
        raise UsageError(f"there is no folder {shown(folder)}: give the folder of a run, the --out of `tinygpt train`")
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)} is a file: give the folder of a run, the --out of `tinygpt train`")
    if (folder / METRICS).is_file():
        return [folder]
    with explain_os_errors("read the folder", folder):
        inside = sorted((place for place in folder.iterdir() if (place / METRICS).is_file()), key=_natural)
    inside = [place for place in inside if not place.name.startswith(".")]  # a new run that has saved nothing yet
    if not inside:
        raise UsageError(
            f"{shown(folder)} is not the folder of a run: it has no {METRICS}, nor has a folder in it; give the --out "
            "of `tinygpt train` or `tinygpt finetune`"
        )
    return inside


def _natural(path: Path) -> list[Any]:
    """fold-2 before fold-10."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", path.name)]


def _names(folders: list[Path]) -> list[str]:
    """The shortest path endings that tell them apart."""
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = [shown(Path(*folder.parts[-count:])) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


# One run ----------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """The run in a folder that has a metrics file. Raises UsageError if that can't be read."""
    records = read_records(folder / METRICS)
    state = _state(folder)
    run = Run(folder, shown(folder.name), records, dict(_settings(folder, state)), state)
    run.holder = holder_of(folder / LOCK)
    return run


def _state(folder: Path) -> dict[str, Any]:
    """The state in the latest checkpoint; its arrays are not read."""
    for _ in range(_TRIES):
        with contextlib.suppress(CheckpointError, OSError, KeyError, TypeError):
            return read_checkpoint(folder / read_index(folder / INDEX)["latest"]["file"], ()).state
    return {}


def _settings(folder: Path, state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """How the run was started (config.toml), and what its checkpoint says, which wins if they differ."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = tomllib.loads((folder / CONFIGURATION).read_text(encoding="utf-8-sig"))
        found |= {name: value for name, value in values.items() if not isinstance(value, dict)}
    for part in ("model_config", "lora", "training_config"):
        stored = state.get(part)
        if isinstance(stored, dict):
            prefix = "lora_" if part == "lora" else ""
            found |= {prefix + name: value for name, value in stored.items() if value is not None}
    first = [name for name in ("files", "data", "valid", "model", "init_from", "base_model") if name in found]
    return ((name, found[name]) for name in (*first, *(name for name in found if name not in first)))
