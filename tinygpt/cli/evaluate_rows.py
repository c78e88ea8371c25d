"""`tinygpt eval` on rows: the figures of a classifier on labelled texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import shown
from .rows import class_predictions, label_kind, make_all, notes, rows_in, write_json, write_predictions


def evaluate_classifier(options: argparse.Namespace, clf: Any, tokenizer: Any, folder: Path) -> int:
    """Print accuracy, macro F1 and the confusion matrix, or the errors of a regression."""
    from ..data import BadRows
    from ..data.labelled import LABEL, TEXT, LabelledExamples
    from ..metrics.labelling import label_report, label_scores, label_table

    if options.data is None:
        raise UsageError(f"{folder} holds a classifier: give rows with a text and a label, with --data FILE")
    bad = BadRows() if options.skip_bad_rows else None
    maker = LabelledExamples(tokenizer, clf.config.block_size, clf.label_names, label_kind(clf))
    rows, examples = make_all(maker.make, rows_in(options.data, (TEXT, LABEL), bad), bad)
    if not rows:
        why = f": {bad.sentences[0]}" if bad is not None and bad.sentences else ""
        raise UsageError(f"there is no row in {shown(options.data)} to evaluate on{why}")
    scores = label_scores(clf, examples, options.batch_size, progress=True)
    report = label_report(clf, scores, [example.label for example in examples])
    cut = sum(example.truncated for example in examples)
    print(notes(options.data, len(rows), cut, bad, clf.config.block_size))
    print(label_table(report))
    if options.json:
        write_json(options.json, {"task": "classify", "data": options.data, "truncated": cut} | report)
    if options.predictions:
        write_predictions(options.predictions, rows, class_predictions(clf, scores))
    return 0
