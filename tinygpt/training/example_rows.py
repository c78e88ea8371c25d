"""The rows of a fine-tuning run: read into examples, counted, split into those to learn and those to evaluate on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.columns import find_columns
from ..data.examples import Example, make_examples
from ..data.folds import folds
from ..data.row_batches import split_rows
from ..data.rows import BadRows, Row, read_rows
from ..errors import UsageError
from ..files import shown
from .config import TrainingConfig


@dataclass
class Rows:
    """The examples of one part, the rows that were left out, and what identifies the rows that were read."""

    examples: list[Example]
    bad: BadRows
    sha256: str


def columns_of(path: str, task: str | None, skip: bool = False) -> tuple[str, tuple[str, ...]]:
    """The task and its columns, from the first row that can be read; with `skip`, from the first that has them."""
    bad = BadRows()
    for row in read_rows(path, skip_bad=bad if skip else None):
        try:
            return find_columns(list(row.values), task, row.where)
        except UsageError as error:
            if not skip:
                raise
            bad.add(str(error))
    if bad.sentences:
        raise UsageError(bad.sentences[0])
    raise UsageError(f"there are no rows in {shown(path)}: a table with named columns is needed, one row a line")


def read_examples(path: str, columns: tuple[str, ...], task: Any, skip: bool) -> Rows:
    """The examples of a file. Raises UsageError for the first row that is no example, unless they are skipped."""
    bad, found = BadRows(), hashlib.sha256()

    def seen() -> Iterator[Row]:
        for row in read_rows(path, columns=columns, skip_bad=bad if skip else None):
            found.update(json.dumps(row.values, sort_keys=True).encode() + b"\n")
            yield row

    examples = make_examples(task.maker, seen(), bad if skip else None)
    if not examples:
        why = f": {bad.sentences[0]}" if bad.sentences else ""
        raise UsageError(f"there is no row in {shown(path)} to learn from{why}")
    return Rows(examples, bad, found.hexdigest())


def split_examples(
    examples: list[Any], path: str, fold: Sequence[int] | None, config: dict[str, Any]
) -> tuple[Sequence[int], Sequence[int]]:
    """The indices of the rows to train on and of those to evaluate on: a part of them, or fold [i, k]."""
    keys = [example.key for example in examples]
    if fold is None:
        return split_rows(keys, config.get("validation_fraction", TrainingConfig.validation_fraction), config["seed"])
    labels = [_hashable(getattr(example, "label", None)) for example in examples]
    number, count = fold
    try:
        first, second = folds(keys, count, labels=labels, seed=config["seed"])[number]
    except UsageError as error:
        raise UsageError(f"{shown(path)}: {error}") from error
    return first.tolist(), second.tolist()


def notes_of(rows: Rows, path: str, block_size: int) -> list[str]:
    """What should be known of the rows of a file: those left out, cut off and repeated."""
    examples, name, notes = rows.examples, shown(path), list[str]()
    if rows.bad.count:
        notes.append(f"{rows.bad.count} rows of {name} were left out, such as {rows.bad.sentences[0]}")
    if cut := sum(example.truncated for example in examples):
        notes.append(f"{cut} of {len(examples)} rows of {name} were cut to the {block_size} tokens of the block")
    if twice := len(examples) - len({_content(example) for example in examples}):
        notes.append(f"{twice} of {len(examples)} rows of {name} are repeated")
    return notes


def _content(example: Any) -> tuple[Any, ...]:
    """What makes two examples the same."""
    learned = getattr(example, "learned", None)
    return example.ids.tobytes(), _hashable(example.label) if learned is None else learned.tobytes()


def _hashable(label: Any) -> Any:
    return label.tobytes() if hasattr(label, "tobytes") else label
