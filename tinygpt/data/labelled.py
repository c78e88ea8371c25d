"""Texts with labels: rows become token ids and numbers, and batches of rows of different lengths.

    names = label_names(rows)                                     # ["neg", "pos"], from the training rows
    maker = LabelledExamples(tokenizer, block_size, names)
    ids, labels, lengths = collate_labelled([maker.make(row) for row in rows])

A label is one of the names; a number is converted to text, so that 1 in JSON and "1" in a CSV file are the same. For a
regression it is a number, and for several labels per text a list of names, or names separated by |; or each label has
its own column of 0s and 1s.

A text that is longer than the block is truncated: its beginning is kept. Rows of a batch are padded on the right, and
their lengths tell where they end.

Letters: B batch, T time (the longest row), n tokens of a text, K labels.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import UsageError
from ..tokenizers import Tokenizer, UnknownCharacterError
from .columns import text_of
from .rows import Row

TEXT, LABEL = "text", "label"
_WHOLE = re.compile(r"-?\d{1,99}")


@dataclass(frozen=True, eq=False)
class LabelledExample:
    """ids: (n,) tokens. label: what `GPTForSequenceClassification.loss` takes; None without one. key: the text; equal
    texts belong on the same side of a split. truncated: whether the text was longer."""

    ids: np.ndarray
    label: Any
    key: str
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


class LabelledExamples:
    """Turns rows into examples. names: of the labels; kind: "single", "multi", "number" or "columns".

    "columns": as "multi", but each label has a column with its name, of 0s and 1s.

    labelled: whether the rows have labels; if not, the column is not read.
    """

    def __init__(
        self, tokenizer: Tokenizer, block_size: int, names: Sequence[str], kind: str = "single", labelled: bool = True
    ) -> None:
        self.tokenizer, self.block_size, self.names, self.kind = tokenizer, block_size, list(names), kind
        self.labelled = labelled
        self.place = {name: i for i, name in enumerate(self.names)}
        # A head without label names takes the numbers 0 .. K - 1.
        if self.names == [f"LABEL_{i}" for i in range(len(names))]:
            self.place |= {str(i): i for i in range(len(names))}

    def make(self, row: Row) -> LabelledExample:
        """The row's example. Raises UsageError with the row's file and line."""
        text = text_of(row, TEXT)
        ids, truncated = self._encoded(text, row.where)
        return LabelledExample(ids, self._label(row) if self.labelled else None, text, truncated)

    def with_text(self, example: LabelledExample, text: str) -> LabelledExample:
        """The example with another text; as it was if that text has no tokens. Raises UsageError."""
        if not len(self.tokenizer.encode(text)):
            return example
        return replace(example, ids=self._encoded(text, "a changed text")[0])

    def _encoded(self, text: str, where: str) -> tuple[np.ndarray, bool]:
        try:
            ids = np.asarray(self.tokenizer.encode(text), np.int64)
        except UnknownCharacterError as error:
            raise UsageError(
                f"{where}: the character {error.character!r} is not in the model's vocabulary: remove it, or leave "
                "such rows out with --skip-bad-rows"
            ) from error
        start = self.tokenizer.start_ids
        if start and ids[: len(start)].tolist() != start:
            ids = np.concatenate([np.asarray(start, np.int64), ids])
        if not len(ids):
            raise UsageError(f"{where}: the text {text!r:.40} has no tokens")
        return ids[: self.block_size].astype(np.int32), len(ids) > self.block_size

    def _label(self, row: Row) -> Any:
        if self.kind == "columns":
            return np.array([_zero_or_one(row, name) for name in self.names], np.float32)  # (K,)
        value = label_in(row)
        if self.kind == "number":
            return _number(row, value)
        if self.kind == "single":
            return self._index(row, value)
        chosen = np.zeros(len(self.names), np.float32)  # (K,)
        for name in names_in(row, value):
            place = self._index(row, name)
            if chosen[place]:  # as in [1, 0, 1], whose numbers would be taken for names
                raise UsageError(
                    f"{row.where}: the label {self.names[place]!r} stands twice: give the names of the text's labels, "
                    "not 0 or 1 for each label"
                )
            chosen[place] = 1
        return chosen

    def _index(self, row: Row, value: Any) -> int:
        name = label_text(row, value)
        if name not in self.place:
            known = ", ".join(repr(one) for one in self.names[:10]) + (" ..." if len(self.names) > 10 else "")
            raise UsageError(f"{row.where}: the label {name!r} is not one of the model's {len(self.names)}: {known}")
        return self.place[name]


def label_in(row: Row) -> Any:
    """The row's label. Raises UsageError if there is none."""
    value = row.values.get(LABEL)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UsageError(f"{row.where}: the column {LABEL!r} is {'missing' if value is None else 'empty'}")
    return value


def label_text(row: Row, value: Any) -> str:
    """A label as its name. Raises UsageError for what is neither text nor a whole number."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        return str(value).strip()
    raise UsageError(f"{row.where}: a label must be a text or a whole number, not {value!r:.40}")


def names_in(row: Row, value: Any) -> list[Any]:
    """The labels of a text that has several: those of a list, or of a text with | between them."""
    if isinstance(value, list):
        return value
    return [name for name in label_text(row, value).split("|") if name.strip()]


def kind_of(row: Row | None) -> str:
    """How to read the labels, from a row: "multi" if it has a list of them. Other kinds must be requested."""
    return "multi" if row is not None and isinstance(row.values.get(LABEL), list) else "single"


def label_names(rows: Iterable[Row], several: bool = False) -> list[str]:
    """The distinct labels of the rows, which have one or `several`: in numerical order, otherwise alphabetical.

    Rows without a usable label are passed over here: `LabelledExamples` names them. Raises UsageError if there are
    fewer than two labels, from which nothing can be learned.
    """
    found = set()
    for row in rows:
        with contextlib.suppress(UsageError):
            value = label_in(row)
            found |= {label_text(row, one) for one in (names_in(row, value) if several else [value])}
    if len(found) < 2:
        there = f"only {min(found)!r}" if found else "none"
        raise UsageError(f"classification needs rows of at least two labels in the column {LABEL!r}; there is {there}")
    numbers = all(_WHOLE.fullmatch(name) for name in found)
    return sorted(found, key=lambda name: (int(name), name)) if numbers else sorted(found)  # "1" and "01" are two


def collate_labelled(examples: Sequence[LabelledExample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids (B, T), padded on the right; labels (B,) or (B, K); lengths (B,)."""
    lengths = np.array([len(example) for example in examples], np.int64)  # (B,)
    ids = np.zeros((len(examples), lengths.max(initial=0)), np.int64)  # (B, T)
    for row, example in zip(ids, examples, strict=True):
        row[: len(example)] = example.ids
    labels = np.array([np.nan if example.label is None else example.label for example in examples])
    return ids, labels, lengths


def _zero_or_one(row: Row, column: str) -> int:
    """Whether a row has the label of this column, which JSON and CSV write in several ways."""
    value = row.values.get(column)
    found = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}.get(str(value).strip().lower())
    if found is None:
        what = "missing or null" if value is None else "empty" if value == "" else f"{value!r:.40}"
        raise UsageError(f"{row.where}: the column {column!r} must be 0 or 1, but is {what}")
    return found


def _number(row: Row, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UsageError(f"{row.where}: the label of a regression must be a number, not {value!r:.40}")
    return number
