"""data.json in the folder of a fine-tuning run: the files with its rows, and the options with which they were read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...files import DAMAGE, atomic_write, damaged, shown
from ..storage.folder import DATA
from .label_task import KINDS
from .tasks import TASKS

UTF_8 = "utf-8"
SPLIT = "validation rows"  # among a run's SHA-256 hashes: that of the indices of the rows that were set aside


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
            raise ValueError(f"label_kind must be one of {', '.join(KINDS)}")
        columns = facts.get("label_columns") or []
        if type(columns) is not list or not all(type(name) is str for name in columns):
            raise ValueError("label_columns is not a list of names")
        return {name: facts[name] for name in (
            "model", "data", "valid", "task", "template", "loss_on", "skip_bad_rows", "sha256"
        )} | {name: facts.get(name) for name in (
            "label_smoothing", "class_weights", "labels", "fold", "augment", "quantize", "label_kind", "encoding",
            "label_columns",
        )}  # fmt: skip
    except OSError as error:
        raise CheckpointError(
            f"{shown(path)} can't be read, so the run in {folder} was not made by `finetune`: {error.strerror or error}"
        ) from error
    except DAMAGE as error:
        raise damaged(shown(path), error, "start a new run") from error


def check_split(facts: dict[str, Any], split: str | None, labelled: bool, folder: Path) -> None:
    """Raise CheckpointError if a run would now get different validation rows: it may have learned from those.

    facts: its data.json; split: the digest of the rows now, None if they have a separate file. Older runs have none;
    they drew the rows of a classifier differently.
    """
    if split is not None and facts["sha256"].get(SPLIT, None if labelled else split) != split:
        raise CheckpointError(
            f"the run in {folder} was made by a version of tinygpt that chose other validation rows: start a new run, "
            "or evaluate it with --data FILE on rows that it has not learned from"
        )
