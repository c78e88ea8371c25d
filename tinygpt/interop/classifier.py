"""Load and save classifiers in transformers' layout: a GPT-2 directory with `score.weight` and the label names.

| config.json | GPTForSequenceClassification |
|---|---|
| architectures | ["GPT2ForSequenceClassification"] |
| id2label, label2id | label_names; transformers leaves them out for two labels without names |
| problem_type | problem_type |

The number of labels is the number of rows of score.weight, which is always right.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import backends
from ..checkpoint import CheckpointFolder
from ..classifier import GPTForSequenceClassification
from ..errors import CheckpointError, UsageError
from ..exchange import read_whole
from ..labels import PROBLEM_TYPES, checked_names
from ..safetensors_io import SafetensorsFile
from ..tokenizers import Tokenizer
from .config import CONFIG, config_json, read_json
from .hub import find_model
from .loading import from_pretrained, is_run, tokenizer_of
from .peft import base_of, is_adapter, load_adapter, open_adapter
from .peft_head import head_in, is_for_classifier, labels_in
from .saving import Folder, arrays_of, generation_of, token_ids, write_folder
from .weights import HEAD, PREFIX, SCORE, Weights, open_weights

ARCHITECTURE = "GPT2ForSequenceClassification"


class Head(NamedTuple):
    """A classifier's head in a folder, and what config.json says about it."""

    weight: np.ndarray  # (K, C)
    names: list[str] | None  # None: the file has only LABEL_0 ...
    problem_type: str | None


def load_classifier(
    cls: Any,
    folder_or_name: str | os.PathLike[str],
    num_labels: int | None,
    label_names: Sequence[str] | None,
    problem_type: str | None,
    *,
    revision: str,
    checkpoint: str,
    **options: Any,
) -> Any:
    """Implements `GPTForSequenceClassification.from_pretrained`. options: those of `interop.from_pretrained`."""
    folder = find_model(folder_or_name, revision)
    if is_adapter(folder):
        return read_whole(folder, partial(_with_adapter, cls, K=num_labels, names=label_names, problem=problem_type,
                                          **options))  # fmt: skip
    with backends.use_backend("numpy"):

        def read(place: Path) -> tuple[Any, Head | None]:
            found: list[Head | None] = []
            take = partial(_take_head, found)
            body = from_pretrained(place, checkpoint=checkpoint, heads=take, **options)
            return body, found[-1]

        body, head = read_whole(folder, read)
        if head is None:
            clf = _with_new_head(cls, body, folder, num_labels, label_names, problem_type)
        else:
            clf = _with_head(cls, body, folder, head, num_labels, label_names, problem_type)
    clf.eval()
    return clf.to(backends.current())


def _with_adapter(
    cls: Any, folder: Path, K: int | None, names: Sequence[str] | None, problem: str | None, **options: Any
) -> Any:
    """The classifier of an adapter: on its base's body, or on the base itself if that is a classifier."""
    base, revision = base_of(folder)
    if is_for_classifier(folder):
        with open_adapter(folder) as file:
            rows = head_in(file)[0]
            found, its_problem = labels_in(file)
            K = rows if K is None else K
            names, problem = names or found, problem or its_problem
    clf = load_classifier(cls, base, K, names, problem, revision=revision, checkpoint="best", **options)
    load_adapter(clf, folder)
    return clf.eval()


def load_with_tokenizer(folder_or_name: str | os.PathLike[str], **options: Any) -> tuple[Any, Tokenizer]:
    """A classifier and the tokenizer in the same folder: `GPTForSequenceClassification.from_pretrained`'s options."""

    def read(place: Path) -> tuple[Any, Tokenizer]:
        clf, tokenizer = GPTForSequenceClassification.from_pretrained(place, **options), tokenizer_of(place)
        if tokenizer.ids_of_texts > clf.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the model has "
                f"{clf.config.vocab_size}: they do not belong together"
            )
        return clf, tokenizer

    folder = find_model(folder_or_name, options.pop("revision", "main"))
    return read_whole(folder, read)


def _take_head(found: list[Head | None], weights: Weights) -> None:
    found.append(read_head(weights))


def is_classifier(folder: Path, checkpoint: str = "best") -> bool:
    """Whether the weights in a model's folder, or in a run's checkpoint, have the head of a classifier."""
    if is_run(folder):
        path = folder / CheckpointFolder(folder).entry(checkpoint)["file"]
        with SafetensorsFile(path) as file:
            return Weights.of_run(path, file).score is not None
    if is_adapter(folder):
        return is_for_classifier(folder)
    if not (folder / CONFIG).exists():
        return False
    with open_weights(folder) as weights:
        return weights.score is not None


def read_head(weights: Weights) -> Head | None:
    """The head among a folder's weights, or None if there is none. Raises CheckpointError."""
    if weights.score is None:
        return None
    folder = weights.folder if weights.folder.is_dir() else weights.folder.parent  # a run's are in a file
    file, stored = weights.score
    shape, settings = file.arrays[stored].shape, read_json(folder / CONFIG)
    if len(shape) != 2 or shape[0] < 1:
        raise CheckpointError(f"the weights in {folder} have {SCORE!r} of shape {shape}, which is not a (K, C) matrix")
    weight = np.asarray(file.read(stored))
    problem = settings.get("problem_type")
    if problem not in (None, *PROBLEM_TYPES):
        raise CheckpointError(
            f"{folder / CONFIG}: problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {problem!r}"
        )
    return Head(weight, _names(folder / CONFIG, settings, shape[0]), problem)


def _names(path: Path, settings: Mapping[str, Any], K: int) -> list[str] | None:
    """The names in id2label, {"0": name, ...}; None if they are transformers' own."""
    table = settings.get("id2label")
    if table is None:
        return None
    if not isinstance(table, dict) or sorted(table) != sorted(str(i) for i in range(K)):
        raise CheckpointError(
            f'{path}: id2label must name the labels "0" to "{K - 1}" of the {K} rows of {SCORE}, not {table!r}'
        )
    try:
        names = checked_names(str(path), [table[str(i)] for i in range(K)], K)
    except UsageError as error:
        raise CheckpointError(str(error)) from error
    return None if names == checked_names("", None, K) else names


def _with_new_head(cls: Any, body: Any, folder: Path, K: int | None, names: Any, problem: str | None) -> Any:
    if K is None and names is None:
        raise UsageError(
            f"{cls.__name__}.from_pretrained: {folder} holds a language model without a classifier's head: say which "
            "head it gets, with num_labels=2 or label_names=['neg', 'pos']"
        )
    return cls(body, len(names) if K is None else K, problem, label_names=names)


def _with_head(
    cls: Any, body: Any, folder: Path, head: Head, K: int | None, names: Sequence[str] | None, problem: str | None
) -> Any:
    found, C = head.weight.shape
    where = f"{cls.__name__}.from_pretrained: {folder}"
    if K is not None and found != K:
        raise UsageError(f"{where} holds a classifier of {found} labels, not num_labels={K}: leave num_labels out")
    if names is not None and head.names is not None and list(names) != head.names:
        raise UsageError(f"{where} holds a classifier of the labels {head.names}, not {list(names)}: leave them out")
    if problem is not None and head.problem_type not in (None, problem):
        raise UsageError(f"{where} holds a classifier for {head.problem_type}, not {problem}: leave problem_type out")
    if body.config.n_embd != C:
        raise CheckpointError(
            f"the weights in {folder} have {SCORE!r} of shape {head.weight.shape}, but config.json implies "
            f"{(found, body.config.n_embd)}"
        )
    clf = cls(body, found, head.problem_type or problem, label_names=names if head.names is None else head.names)
    clf.score.weight.data[...] = head.weight
    return clf


def save_classifier(
    clf: Any,
    folder: str | os.PathLike[str],
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
    write_tokenizer: Callable[[Path], None] | None = None,
    special_tokens: Mapping[str, Any] | None = None,
    best: Mapping[str, Any] | None = None,
) -> None:
    """Implements `GPTForSequenceClassification.save_pretrained`; the arguments are those of `saving.save`."""
    state = clf.state_dict() if best is None else best
    body = {name.removeprefix(PREFIX): array for name, array in state.items() if name != SCORE}
    arrays = arrays_of(clf.transformer, body)
    arrays.pop(HEAD, None)  # of an untied language model: a classifier has none
    arrays[SCORE] = state[SCORE]
    generation = generation_of(clf.transformer, special_tokens)
    content = Folder(settings_of(clf, dtype, generation), generation, arrays, write_tokenizer)
    write_folder(folder, content, dtype, max_shard_size, of_run=best is not None)


def save_with_tokenizer(clf: Any, folder: str | os.PathLike[str], tokenizer: Any, **options: Any) -> None:
    """As `save_classifier`, and the files of `tokenizer`, if that is not None. Raises UsageError if it does not fit."""
    if tokenizer is None:
        save_classifier(clf, folder, **options)
        return
    if tokenizer.vocab_size > clf.config.vocab_size:
        raise UsageError(
            f"save_pretrained: the tokenizer has {tokenizer.vocab_size} tokens, but the model has only "
            f"{clf.config.vocab_size}: they do not belong together"
        )
    save_classifier(clf, folder, write_tokenizer=tokenizer.save, special_tokens=token_ids(tokenizer), **options)


def settings_of(clf: Any, dtype: str, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a classifier's config.json."""
    config = dataclasses.replace(clf.config, tie_word_embeddings=True)
    return config_json(config, dtype, generation) | {
        "architectures": [ARCHITECTURE], "problem_type": clf.problem_type,
        "id2label": {str(i): name for i, name in enumerate(clf.label_names)},
        "label2id": {name: i for i, name in enumerate(clf.label_names)},
    }  # fmt: skip
