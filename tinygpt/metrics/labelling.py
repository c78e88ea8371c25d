"""How well a classifier labels texts: its scores for many texts, and the report on them.

scores = label_scores(clf, examples, batch_size=16)           # (N, K), in the order of the examples
report = label_report(clf, scores, labels)                     # what --json writes
print(label_table(report))
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import console
from ..checks import whole_number
from ..data.labelled import LabelledExample, collate_labelled
from ..labels import MULTI, REGRESSION
from .classification import accuracy, confusion_matrix, f1, f1_scores
from .regression import correlation, mean_absolute_error, mean_squared_error, r2, rank_correlation

_WIDEST = 20  # labels in a confusion matrix on the screen


def label_scores(
    clf: Any, examples: Sequence[LabelledExample], batch_size: int = 16, progress: bool = False
) -> np.ndarray:
    """(N, K): the classifier's probabilities, or numbers, for each example. Similar lengths share a batch."""
    batch_size = whole_number("label_scores", "batch_size", batch_size)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    scores = np.zeros((len(examples), clf.num_labels))
    parts = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    for part in console.bar(parts, "labelling", progress):
        ids, _, lengths = collate_labelled([examples[i] for i in part])
        scores[part] = clf.scores(ids, lengths)
    return scores


def label_report(clf: Any, scores: np.ndarray, labels: Sequence[Any]) -> dict[str, Any]:
    """The metrics, as JSON values. scores (N, K); labels: N, in the form of `LabelledExample.label`."""
    if clf.problem_type == REGRESSION:
        return _of_numbers(scores, np.asarray(labels, np.float64).reshape(len(scores), -1))
    if clf.problem_type == MULTI:
        return _of_several(clf, scores, np.asarray(labels) > 0.5)
    names = clf.label_names
    right = [names[i] for i in labels]
    found = [names[i] for i in scores.argmax(axis=1)]
    chosen = scores[np.arange(len(right)), np.asarray(labels)]
    matrix = confusion_matrix(found, right, names)
    tiny = np.finfo(np.float64).tiny
    majority = int(matrix.sum(axis=1).max())
    return {
        "rows": len(right), "accuracy": accuracy(found, right), "macro_f1": f1(found, right),
        "loss": float(-np.log(np.maximum(chosen, tiny)).mean()), "majority": majority / len(right), "labels": names,
        "f1": f1_scores(found, right, names), "confusion_matrix": matrix.tolist(),
    }  # fmt: skip


def label_table(report: dict[str, Any]) -> str:
    """The report for the screen."""
    if "confusion_matrix" not in report:
        line = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in report.items() if isinstance(value, float)
        )
        each = "  ".join(f"{name} {value:.4f}" for name, value in report.get("f1", {}).items())
        return f"{line}\nF1 of each label: {each}" if each else line
    names, matrix = report["labels"], np.array(report["confusion_matrix"])
    lines = [
        f"accuracy {report['accuracy']:.4f}  macro F1 {report['macro_f1']:.4f}  loss {report['loss']:.4f}  "
        f"(always the commonest label: accuracy {report['majority']:.4f})"
    ]
    rows = [["label", "precision", "recall", "F1", "rows"]]
    for i, name in enumerate(names):
        hits, found, there = matrix[i, i], matrix[:, i].sum(), matrix[i].sum()
        ratios = [hits / found if found else 0.0, hits / there if there else 0.0, report["f1"][name]]
        rows.append([name, *(f"{ratio:.3f}" for ratio in ratios), str(there)])
    lines += ["", *_aligned(rows)]
    if len(names) <= _WIDEST:
        rows = [
            ["true \\ predicted", *names],
            *([name, *map(str, row)] for name, row in zip(names, matrix, strict=True)),
        ]
        lines += ["", *_aligned(rows)]
    return "\n".join(lines)


def _of_numbers(scores: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    found, true = scores.reshape(-1), right.reshape(-1)
    loss = mean_squared_error(found, true)
    return {
        "rows": len(scores), "loss": loss, "root_mean_squared_error": loss**0.5,
        "mean_absolute_error": mean_absolute_error(found, true), "r2": r2(found, true),
        "correlation": correlation(found, true), "rank_correlation": rank_correlation(found, true),
    }  # fmt: skip


def _of_several(clf: Any, scores: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """right (N, K) bool. Each label is a yes-or-no question; `accuracy` counts texts whose labels are all right."""
    found = scores > 0.5
    each = {name: f1(found[:, k], right[:, k], labels=[True]) for k, name in enumerate(clf.label_names)}
    sure = np.clip(np.where(right, scores, 1 - scores), np.finfo(np.float64).tiny, 1)
    return {
        "rows": len(scores), "accuracy": float((found == right).all(axis=1).mean()),
        "macro_f1": sum(each.values()) / len(each),
        "micro_f1": f1(found.reshape(-1), right.reshape(-1), labels=[True]),
        "loss": float(-np.log(sure).mean()), "labels": clf.label_names, "f1": each,
    }  # fmt: skip


def _aligned(rows: list[list[str]]) -> list[str]:
    """Align columns, the first one left and the others right; a Chinese character is two columns wide."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - _width(first))]
        cells += [" " * (width - _width(cell)) + cell for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
