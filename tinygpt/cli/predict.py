"""`tinygpt predict`: the labels of all texts in a file."""

from __future__ import annotations

import argparse

from ..console import say
from ..errors import UsageError
from .generating import add_model_options
from .rows import (
    add_row_options,
    check_targets,
    class_predictions,
    label_kind,
    load_model,
    make_all,
    notes,
    rows_in,
    write_predictions,
)

ABOUT = """Label the texts in a file. A classifier reads the column `text` of JSON lines, CSV or TSV, or the lines of
any other file. A line of JSON is written for each row: its columns, `prediction`, `score`, `scores`."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--data", metavar="FILE", required=True, help="rows: .jsonl, .csv, .tsv; or a text a line")
    parser.add_argument("--out", metavar="FILE.jsonl", default="-", help="(default: the standard output)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows per batch (default: 16)")
    add_row_options(parser)
    parser.set_defaults(run=predict)


def predict(options: argparse.Namespace) -> int:
    """Write a prediction for each row, in the order of the file."""
    from ..data import BadRows
    from ..data.labelled import TEXT, LabelledExamples
    from ..metrics.labelling import label_scores

    check_targets(options.data, options.out)
    model, tokenizer, folder, is_classifier = load_model(options)
    if not is_classifier:
        raise UsageError(f"{folder} holds a language model, which has no labels to give: use a classifier")
    bad = BadRows() if options.skip_bad_rows else None
    maker = LabelledExamples(tokenizer, model.config.block_size, model.label_names, label_kind(model), labelled=False)
    rows, examples = make_all(maker.make, rows_in(options.data, (TEXT,), bad), bad)
    if not rows:
        raise UsageError(f"there is no text in {options.data} to label")
    scores = label_scores(model, examples, options.batch_size, progress=True)
    write_predictions(options.out, rows, class_predictions(model, scores))
    if options.out != "-":
        cut = sum(example.truncated for example in examples)
        say(f"{notes(options.data, len(rows), cut, bad, model.config.block_size)}; written to {options.out}")
    return 0
