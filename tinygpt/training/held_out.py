"""The facts about a fine-tuning run's data, and its validation rows, read again.

`data.json` in the run's folder says where the rows came from and what they were read for. With the settings in a
checkpoint that is enough to find the rows that the run did not learn from, which give an honest score later.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ..checkpoint import CheckpointFolder
from ..data.rows import Row
from ..errors import CheckpointError, UsageError
from ..files import atomic_write, shown
from .example_rows import columns_of, read_examples, split_examples
from .folder import DATA
from .label_task import KINDS
from .state import training_config
from .tasks import TASKS

UTF_8 = "utf-8"


def write_data_facts(place: Path, facts: dict[str, Any]) -> None:
    """Write a run's data.json into the folder `place`."""
    with atomic_write(place / DATA, "w") as file:
        json.dump(facts, file, indent=1, ensure_ascii=False)


def read_data_facts(folder: Path) -> dict[str, Any]:
    """The content of a run's data.json. Raises CheckpointError if it is missing or damaged."""
    path = folder / DATA
    try:
        facts = json.loads(path.read_bytes().decode("utf-8"))
        if facts["task"] not in TASKS or not isinstance(facts["data"], str) or not isinstance(facts["sha256"], dict):
            raise ValueError("it names no task and data that this version knows")
        if facts.get("label_kind") not in (None, *KINDS):
            raise ValueError(f"label_kind is none of {', '.join(KINDS)}")
        return {name: facts[name] for name in (
            "model", "data", "valid", "task", "template", "loss_on", "skip_bad_rows", "sha256"
        )} | {name: facts.get(name) for name in (
            "label_smoothing", "class_weights", "labels", "fold", "augment", "quantize", "label_kind", "encoding"
        )}  # fmt: skip
    except OSError as error:
        raise CheckpointError(
            f"{shown(path)} can't be read, so the run in {folder} was not made by `finetune`: {error.strerror or error}"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{shown(path)} is damaged ({error}): restore it from a copy, or start a new run"
        ) from error


class ValidationFile(NamedTuple):
    """Where the validation rows of a run are, all of the file or some; part: what data.json calls it."""

    path: str
    part: str
    encoding: str
    skip: bool
    task: str


def validation_file(folder: Path) -> ValidationFile:
    """The file with the validation rows of the run in `folder`. Raises CheckpointError."""
    facts = read_data_facts(folder)
    part, path = ("validation", facts["valid"]) if facts["valid"] is not None else ("train", facts["data"])
    return ValidationFile(path, part, facts["encoding"] or UTF_8, bool(facts["skip_bad_rows"]), facts["task"])


def held_out_rows(folder: Path, checkpoint: str, maker: Any) -> list[Row]:
    """The validation rows of the run in `folder`, from which it did not learn.

    checkpoint: "best" or "latest", whose settings count. maker: makes an example of a row, as in training.
    Raises UsageError if the file is not as it was, CheckpointError for a damaged run.
    """
    facts, file = read_data_facts(folder), validation_file(folder)
    state = CheckpointFolder(folder).load(checkpoint).state
    config = training_config(state, f"the {checkpoint} checkpoint in {folder}")
    _, columns, _ = columns_of(file.path, file.task, file.skip, file.encoding)
    rows: list[Row] = []

    def make(row: Row) -> Any:
        example = maker.make(row)
        rows.append(row)
        return example

    task = SimpleNamespace(maker=SimpleNamespace(make=make))
    found = read_examples(file.path, columns, task, file.skip, file.encoding)
    if found.sha256 != facts["sha256"].get(file.part):
        raise UsageError(
            f"the file {shown(file.path)} has changed since the run in {folder} began, so its validation rows are not "
            "known any more: restore it, or give rows with --data FILE"
        )
    if file.part == "validation":
        return rows
    settings = {"validation_fraction": config.validation_fraction, "seed": config.seed}
    _, chosen = split_examples(found.examples, file.path, facts["fold"], settings)
    return [rows[i] for i in chosen]


def learned_from(folder: Path, path: str) -> bool:
    """Whether the file is the one that the run in `folder` was trained on."""
    if not (folder / DATA).exists() or not os.path.exists(path):
        return False
    data = read_data_facts(folder)["data"]
    return os.path.exists(data) and os.path.samefile(data, path)
