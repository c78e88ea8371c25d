"""The rows of a fine-tuning run: read into examples, counted, and split into training and validation rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checks import number
from ...data.columns import find_columns
from ...data.examples import Example, make_examples
from ...data.folds import folds
from ...data.rows import BadRows, Row, read_rows
from ...data.splitting import same_key, split_rows
from ...errors import UsageError
from ...files import shown
from ..settings.config import TrainingConfig


@dataclass
class Rows:
    """The examples of one part, the rows that were skipped, and the SHA-256 of the rows that were read."""

    examples: list[Example]
    bad: BadRows
    sha256: str


def columns_of(
    path: str, task: str | None, skip: bool = False, encoding: str = "utf-8", labels: Sequence[str] | None = None
) -> tuple[str, tuple[str, ...], list[str]]:
    """The task, its columns, and the others, from the first readable row or, with `skip`, the first that has them.

    labels: columns of 0s and 1s, instead of the column `label`.
    """
    bad = BadRows()
    for row in read_rows(path, encoding, skip_bad=bad if skip else None):
        try:
            name, columns = find_columns(list(row.values), task, row.where, labels or ())
            read = {*columns, "input"} if columns[0] == "instruction" else {*columns}
            return name, columns, [column for column in row.values if column not in read]
        except UsageError as error:
            if not skip:
                raise
            bad.add(str(error))
    if bad.sentences:
        raise UsageError(bad.sentences[0])
    raise UsageError(f"there are no rows in {shown(path)}: a table with named columns is needed, one row per line")


def read_examples(
    path: str, columns: tuple[str, ...], task: Any, skip: bool, encoding: str = "utf-8", purpose: str = "learn from"
) -> Rows:
    """The examples of a file. Raises UsageError for the first row that can't be used, unless such rows are skipped."""
    bad, found = BadRows(), hashlib.sha256()

    def seen() -> Iterator[Row]:
        for row in read_rows(path, encoding, columns, bad if skip else None):
            found.update(json.dumps(row.values, sort_keys=True).encode() + b"\n")
            yield row

    examples = make_examples(task.maker, seen(), bad if skip else None)
    if not examples:
        why = f": {bad.sentences[0]}" if bad.sentences else ""
        raise UsageError(f"there is no row in {shown(path)} to {purpose}{why}")
    return Rows(examples, bad, found.hexdigest())


def split_examples(
    examples: list[Any], path: str, fold: Sequence[int] | None, config: dict[str, Any]
) -> tuple[Sequence[int], Sequence[int]]:
    """The indices of the training and of the validation rows: a random share of them, or fold [i, k]."""
    keys = [example.key for example in examples]
    labels = [_hashable(getattr(example, "label", None)) for example in examples]
    names = labels_of(examples)
    if fold is None:
        fraction = config.get("validation_fraction", TrainingConfig.validation_fraction)
        number("finetune", "validation_fraction", fraction, above=0, below=1)
        return split_rows(keys, fraction, config["seed"], names)
    part, count = fold
    try:
        parts = folds(keys, count, labels=labels, seed=config["seed"])
    except UsageError as error:
        raise UsageError(f"{shown(path)}: {error}") from error
    if one_label(examples):
        _check_folds(parts, labels, path)
    first, second = parts[part]
    return first.tolist(), second.tolist()


def labels_of(examples: Sequence[Any]) -> list[Any] | None:
    """The label of each example, or the frozenset of its labels; None without label names, as for a regression."""
    labels: list[Any] = [getattr(example, "label", None) for example in examples]
    if one_label(examples):
        return labels
    if all(isinstance(label, np.ndarray) for label in labels):
        return [frozenset(np.flatnonzero(label).tolist()) for label in labels]
    return None


def one_label(examples: Sequence[Any]) -> bool:
    """Whether these are texts of one label each."""
    return all(isinstance(getattr(example, "label", None), int) for example in examples)


def _check_folds(parts: Sequence[tuple[Any, Any]], labels: Sequence[int], path: str) -> None:
    """Raise UsageError, before the first fold is trained, if one of them could not be learned or tested."""
    for train, test in parts:
        found, learned = {labels[i] for i in test}, {labels[i] for i in train}
        if len(found) < 2 or not learned.issuperset(labels):
            what = "has all rows of a label" if len(found) > 1 else f"has {len(test)} rows, all of one label"
            raise UsageError(
                f"{shown(path)}: one of {len(parts)} folds {what}, so it would measure nothing: give fewer --folds, or "
                "rows with more different texts of the rarest label"
            )


def notes_of(rows: Rows, path: str, block_size: int) -> list[str]:
    """Notes for the user about the rows of a file: how many were skipped, truncated, repeated."""
    examples, name, notes = rows.examples, shown(path), list[str]()
    if rows.bad.count:
        notes.append(f"{rows.bad.count} rows of {name} were left out, such as {rows.bad.sentences[0]}")
    if cut := sum(example.truncated for example in examples):
        notes.append(f"{cut} of {len(examples)} rows of {name} were cut to the {block_size} tokens of the block")
    if twice := len(examples) - len({_content(example) for example in examples}):
        notes.append(f"{twice} of {len(examples)} rows of {name} are repeated")
    return notes


def columns_note(task: str, others: Sequence[str]) -> list[str]:
    """A note on columns that are not read: the user may have meant one of them to be learned."""
    if not others:
        return []
    named = ", ".join(repr(column) for column in others[:5]) + (" ..." if len(others) > 5 else "")
    hint = "; labels are read from the column 'label'" if task == "text" else ""
    return [f"not read: the column{'s' * (len(others) > 1)} {named}{hint}"]


def labels_note(examples: Sequence[Any], names: Sequence[str]) -> list[str]:
    """The number of rows per label, which reveals labels spelled in two ways, and of texts with several labels."""
    if not one_label(examples):
        return []
    counts, of_text = Counter[int](), dict[str, set[int]]()
    for example in examples:
        counts[example.label] += 1
        of_text.setdefault(same_key(example.key), set()).add(example.label)
    each = ", ".join(f"{names[k]!r} {counts[k]}" for k in range(len(names))[:20]) + (" ..." if len(names) > 20 else "")
    several = sum(len(labels) > 1 for labels in of_text.values())
    texts = [f"{several} text{'s have' if several > 1 else ' has'} more than one label"] if several else []
    return [f"labels: {each}", *texts]


def rare_note(examples: Sequence[Any], validation: Sequence[int], names: Sequence[str]) -> list[str]:
    """The labels without a validation row, so that the metrics don't tell how well they are learned."""
    labels = labels_of(examples)
    if labels is None:
        return []
    sets = [label if isinstance(label, frozenset) else {label} for label in labels]
    counts = Counter(label for its in sets for label in its)
    absent = sorted(counts.keys() - {label for i in validation for label in sets[i]})
    if not absent:
        return []
    each = ", ".join(f"{names[k]!r} ({counts[k]} of {len(examples)} rows)" for k in absent[:10])
    return [f"too rare for a validation row: {each}{' ...' if len(absent) > 10 else ''}"]


def _content(example: Any) -> tuple[Any, ...]:
    """What makes two examples the same."""
    learned = getattr(example, "learned", None)
    return example.ids.tobytes(), _hashable(example.label) if learned is None else learned.tobytes()


def _hashable(label: Any) -> Any:
    return label.tobytes() if hasattr(label, "tobytes") else label
