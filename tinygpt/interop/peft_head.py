"""The head of a classifier in the file of its LoRA adapter: task_type "SEQ_CLS" and modules_to_save, in PEFT's words.

The head is trained as a whole, so it is stored as a whole, as `base_model.model.score.weight`. PEFT stores no label
names; they are in the file's metadata, which PEFT ignores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends
from ..array_file import ArrayFile
from ..classifier import GPTForSequenceClassification
from ..errors import CheckpointError, UsageError
from ..labels import PROBLEM_TYPES, checked_names
from .config import read_json
from .weights import ADAPTER_CONFIG, SCORE

TASK = "SEQ_CLS"
SAVED = ("classifier", "score")  # PEFT names both, for all kinds of models
ARRAY = f"base_model.model.{SCORE}"
_LABELS = "tinygpt_labels"  # the entry of the metadata


def body_of(model: Any) -> Any:
    """The language model that is adapted; for a classifier, the one inside."""
    return model.transformer if isinstance(model, GPTForSequenceClassification) else model


def is_for_classifier(folder: Path) -> bool:
    """Whether the adapter in `folder` has the head of a classifier."""
    return (folder / ADAPTER_CONFIG).exists() and read_json(folder / ADAPTER_CONFIG).get("task_type") == TASK


def head_content(model: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """What a classifier adds to adapter_config.json, and to the arrays and the metadata of its adapter's file."""
    if not isinstance(model, GPTForSequenceClassification):
        return {}, {}, {}
    labels = {"names": list(model.label_names), "problem_type": model.problem_type}
    arrays = {ARRAY: backends.move(model.score.weight.data, "numpy")}
    return {"task_type": TASK, "modules_to_save": list(SAVED)}, arrays, {_LABELS: json.dumps(labels)}


def without_head(content: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json without its settings for a head that this package supports."""
    saved = content.get("modules_to_save")
    ours = content.get("task_type") == TASK and (saved is None or (isinstance(saved, list) and set(saved) <= {*SAVED}))
    return {**content, "task_type": None, "modules_to_save": None} if ours else dict(content)


def head_in(file: ArrayFile, K: int | None = None, C: int | None = None) -> tuple[int, int]:
    """The shape (K, C) of the head in an adapter's file. Raises CheckpointError if it is missing or does not fit."""
    if ARRAY not in file.arrays:
        raise CheckpointError(f"the adapter {file.path} is damaged: it is for a classifier, and lacks {ARRAY!r}")
    shape = file.arrays[ARRAY].shape
    if len(shape) != 2 or shape[0] < 1 or any(n not in (None, m) for n, m in zip((K, C), shape, strict=True)):
        wanted = tuple("any number" if n is None else n for n in (K, C))
        raise CheckpointError(
            f"the adapter {file.path} is for another model: {ARRAY!r} has shape {shape}, and this classifier's head "
            f"({', '.join(map(str, wanted))})"
        )
    return int(shape[0]), int(shape[1])


def labels_in(file: ArrayFile) -> tuple[list[str] | None, str | None]:
    """The label names and the problem type in the metadata; None where they are missing."""
    try:
        found = dict(json.loads(getattr(file, "metadata", {}).get(_LABELS, "{}")))
        names, problem = found.get("names"), found.get("problem_type")
        if names is not None:
            names = checked_names(str(file.path), names, head_in(file)[0])
        if problem not in (None, *PROBLEM_TYPES):
            raise ValueError
    except (ValueError, TypeError, RecursionError, UsageError):
        raise CheckpointError(f"{file.path} is damaged: its entry {_LABELS} does not name the labels") from None
    return names, problem


def put_head(model: Any, weight: np.ndarray) -> None:
    """Copy the head that was read into the model."""
    parameter = model.score.weight
    parameter.data[...] = backends.move(weight.astype(parameter.dtype), parameter.backend)
    parameter.mark_changed()
