"""What `eval` and `predict` share: loading a model of either kind, the rows of a file, and the file of predictions.

A prediction is one line of JSON: the row's own columns, `prediction` and, for a classifier, `score` and `scores`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends
from ..errors import UsageError
from ..files import atomic_write, explain_os_errors, shown, user_path
from .loading import formats_of, load
from .needs import Need, require_for_model, template_need

if TYPE_CHECKING:
    from ..data import BadRows, Row
    from ..tokenizers import Tokenizer


def add_row_options(parser: Any) -> None:
    """Options for rows of a table."""
    words = "skip and count rows that can't be used"
    parser.add_argument("--skip-bad-rows", action="store_true", help=words)
    words = "encoding of --data: utf-8, gb18030, latin-1 ...; a byte order mark wins (default: utf-8)"
    parser.add_argument("--encoding", metavar="NAME", default="utf-8", help=words)


def load_model(options: argparse.Namespace, *needs: Need) -> tuple[Any, Tokenizer, Path, bool]:
    """The model, its tokenizer, their folder, and whether it is a classifier.

    needs: checks of the libraries that the command uses besides. Raises UsageError.
    """
    from .. import interop
    from ..data.opening import require_zstandard
    from ..exchange import read_whole
    from ..interop.classifier import is_classifier, load_with_tokenizer

    # Only wanted: the file may have no prompts.
    template = template_need(options, options.template)
    require_for_model(options, *needs, lambda: require_zstandard(options.data), wanted=[template])
    folder = interop.find_model(options.model, options.revision)
    which = options.checkpoint or "best"
    if not read_whole(folder, lambda place: is_classifier(place, which)):
        return *load(options), False
    backends.use_backend(options.backend)
    clf, tokenizer = load_with_tokenizer(folder, checkpoint=which, **formats_of(options))
    return clf, tokenizer, folder, True


def is_table(path: str) -> bool:
    """Whether a file has rows of named columns, by its name."""
    from ..data.opening import suffix
    from ..data.rows import SUFFIXES

    return suffix(path) in SUFFIXES


def rows_in(path: str, columns: Sequence[str], bad: BadRows | None, encoding: str = "utf-8") -> Iterator[Row]:
    """The rows of a table, or the lines of any other file, as texts."""
    from ..data import Row, read_rows, read_text

    if is_table(path):
        yield from read_rows(path, encoding, columns, bad)
        return
    for number, line in enumerate("".join(read_text(path, encoding=encoding)).split("\n"), 1):
        if line.strip():
            yield Row({"text": line.strip()}, f"{shown(path)}, line {number}")


def make_all(make: Any, rows: Iterable[Row], bad: BadRows | None) -> tuple[list[Row], list[Any]]:
    """The rows that can be used and what `make` makes of them; the others are counted in `bad`. Raises UsageError."""
    used, made = [], []
    for row in rows:
        try:
            example = make(row)
        except UsageError as error:
            if bad is None:
                raise
            bad.add(str(error))
            continue
        used.append(row)
        made.append(example)
    return used, made


def notes(path: str, count: int, truncated: int, bad: BadRows | None, block_size: int) -> str:
    """Notes for the user about the rows: how many there are, how many were truncated or skipped."""
    parts = [f"{shown(path)}: {count:,} rows"]
    if truncated:
        parts.append(f"{truncated:,} of them cut to the model's {block_size} tokens")
    if bad is not None and bad.count:
        parts.append(f"{bad.count:,} left out, such as {bad.sentences[0]}")
    return "; ".join(parts)


def write_predictions(path: str, rows: Sequence[Row], predictions: Iterable[dict[str, Any]]) -> None:
    """Write one line of JSON per row, atomically; "-" is standard output. Raises UsageError."""
    lines = (
        json.dumps(row.values | found, ensure_ascii=False) + "\n" for row, found in zip(rows, predictions, strict=True)
    )
    if path == "-":
        for line in lines:
            print(line, end="")
        return
    with explain_os_errors("write the predictions to", path), atomic_write(path, "w") as file:
        file.writelines(lines)


def write_json(path: str, report: dict[str, Any]) -> None:
    """Write the report as JSON, atomically. Raises UsageError."""
    with explain_os_errors("write the report to", path), atomic_write(path, "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")


def check_targets(data: str | None, *paths: str | None) -> None:
    """Raise UsageError before the work begins if a file can't be written, or would replace the data."""
    for path in paths:
        if path is None or path == "-":
            continue
        if data is not None and os.path.exists(path) and os.path.samefile(path, data):
            raise UsageError(f"{shown(path)} is the data itself: write to another file")
        folder = user_path(path).parent
        if not folder.is_dir():
            raise UsageError(f"cannot write {shown(path)}: there is no folder {folder}")


def class_predictions(clf: Any, scores: Any) -> Iterator[dict[str, Any]]:
    """What is written for each row of scores (N, K): the label, its probability, and those of all labels."""
    from ..labels import MULTI, REGRESSION

    names = clf.label_names
    for row in scores.tolist():
        if clf.problem_type == REGRESSION:
            yield {"prediction": row[0] if len(row) == 1 else row}
            continue
        each = dict(zip(names, row, strict=True))
        if clf.problem_type == MULTI:
            yield {"prediction": [name for name, score in each.items() if score > 0.5], "scores": each}
        else:
            best = max(each, key=each.__getitem__)
            yield {"prediction": best, "score": each[best], "scores": each}


def label_kind(clf: Any) -> str:
    """How the labels of a classifier are read: `LabelledExamples`' kind."""
    from ..labels import MULTI, REGRESSION

    return {MULTI: "multi", REGRESSION: "number"}.get(clf.problem_type, "single")
