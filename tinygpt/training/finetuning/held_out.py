"""The validation rows of a fine-tuning run, read again later: rows that it did not learn from give an honest score.

`data.json` (`data_facts.py`) and the settings in a checkpoint determine which rows these are.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ...checkpoint import CheckpointFolder
from ...data.rows import Row
from ...data.splitting import digest_of
from ...errors import UsageError
from ...files import shown
from ..storage.folder import DATA
from ..storage.state import training_config
from .data_facts import UTF_8, check_split, read_data_facts
from .example_rows import columns_of, labels_of, read_examples, split_examples


class ValidationFile(NamedTuple):
    """The file with a run's validation rows, and perhaps others. part: its name in data.json."""

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

    checkpoint: "best" or "latest", whose settings count. maker: turns rows into examples, as in training.
    Raises UsageError if the file has changed, CheckpointError for a damaged run.
    """
    facts, file = read_data_facts(folder), validation_file(folder)
    state = CheckpointFolder(folder).load(checkpoint).state
    config = training_config(state, f"the {checkpoint} checkpoint in {folder}")
    _, columns, _ = columns_of(file.path, file.task, file.skip, file.encoding, facts["label_columns"])
    rows: list[Row] = []

    def make(row: Row) -> Any:
        example = maker.make(row)
        rows.append(row)
        return example

    task = SimpleNamespace(maker=SimpleNamespace(make=make))
    found = read_examples(file.path, columns, task, file.skip, file.encoding)
    if found.sha256 != facts["sha256"].get(file.part):
        raise UsageError(
            f"the file {shown(file.path)} has changed since the run in {folder} began, so its validation rows are no "
            "longer known: restore it, or give rows with --data FILE"
        )
    if file.part == "validation":
        return rows
    settings = {"validation_fraction": config.validation_fraction, "seed": config.seed}
    _, chosen = split_examples(found.examples, file.path, facts["fold"], settings)
    check_split(facts, digest_of(chosen), labels_of(found.examples) is not None, folder)
    return [rows[i] for i in chosen]


def learned_from(folder: Path, path: str) -> bool:
    """Whether the file is the one that the run in `folder` was trained on."""
    if not (folder / DATA).exists() or not os.path.exists(path):
        return False
    data = read_data_facts(folder)["data"]
    return os.path.exists(data) and os.path.samefile(data, path)
