"""The options from which a task of `tinygpt finetune` is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.dialogue import Template
from ...data.rows import Row


@dataclass(frozen=True)
class TaskOptions:
    """What a task is built from: its columns, and the command-line options that concern it."""

    columns: tuple[str, ...]
    template: str | None = None
    loss_on: str | None = None
    rows: Callable[[], Iterable[Row]] = tuple  # the training rows, for a task that has to see them first
    labels: Sequence[str] | None = None  # of the run that is resumed
    label_smoothing: float | None = None
    class_weights: str | None = None
    augment: str | None = None
    classifier: Any = None  # the one the run starts from
    label_kind: str | None = None
    files: tuple[str, str] | None = None  # of the training and validation rows, for error messages
    own_template: Template | None = None  # the one the model was trained with before
