"""`tinygpt predict`: label the texts, or answer the prompts, in a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import say
from ..errors import UsageError
from .answers import add_answer_options
from .loading import add_model_options
from .rows import (
    add_row_options,
    check_targets,
    class_predictions,
    is_table,
    label_kind,
    load_model,
    make_all,
    notes,
    rows_in,
    write_predictions,
)

if TYPE_CHECKING:
    from ..data import BadRows, Row
    from ..data.dialogue import AnyTemplate

    Found = tuple[list[Row], int, Iterable[dict[str, Any]]]  # the rows, how many were truncated, the predictions

ABOUT = """Label the texts in a file, or answer its prompts. A classifier reads the column `text` of JSON lines, CSV or
TSV, a language model `prompt`, `question`, `instruction` or `messages`; both read the lines of any other file. A line
of JSON is written for each row: its columns and `prediction`; of a classifier also `score` and `scores`."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--data", metavar="FILE", required=True, help="rows: .jsonl, .csv, .tsv; or one text per line")
    parser.add_argument("--out", metavar="FILE.jsonl", default="-", help="(default: the standard output)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows per batch (default: 16)")
    add_answer_options(parser)
    add_row_options(parser)
    parser.set_defaults(run=predict)


def predict(options: argparse.Namespace) -> int:
    """Write a prediction for each row, in the order of the file."""
    from ..data import BadRows

    check_targets(options.data, options.out)
    model, tokenizer, folder, is_classifier = load_model(options)
    bad = BadRows() if options.skip_bad_rows else None
    if is_classifier:
        rows, cut, predictions = _labels(options, model, tokenizer, bad)
    else:
        rows, cut, predictions = _answers(options, model, tokenizer, folder, bad)
    write_predictions(options.out, rows, predictions)
    if options.out != "-":
        say(f"{notes(options.data, len(rows), cut, bad, model.config.block_size)}; written to {options.out}")
    return 0


def _labels(options: argparse.Namespace, clf: Any, tokenizer: Any, bad: BadRows | None) -> Found:
    from ..data.labelled import TEXT, LabelledExamples
    from ..metrics.labelling import label_scores

    maker = LabelledExamples(tokenizer, clf.config.block_size, clf.label_names, label_kind(clf), labelled=False)
    rows, examples = make_all(maker.make, rows_in(options.data, (TEXT,), bad, options.encoding), bad)
    if not rows:
        raise UsageError(f"there is no text in {options.data} to label")
    scores = label_scores(clf, examples, options.batch_size, progress=True)
    return rows, sum(example.truncated for example in examples), class_predictions(clf, scores)


def _answers(options: argparse.Namespace, model: Any, tokenizer: Any, folder: Path, bad: BadRows | None) -> Found:
    from ..data import Row
    from ..data.jinja_template import in_jinja, template_for
    from ..training.finetuning.task_options import TaskOptions
    from ..training.finetuning.tasks import AnswerTask
    from .answers import Answers, asked, first_that, prompt_columns, template_name

    given = rows_in(options.data, (), bad, options.encoding)
    if not is_table(options.data):  # one prompt per line
        given = (Row({"prompt": row.values["text"]}, row.where) for row in given)
    every = list(given)
    if not every:
        raise UsageError(f"there is no prompt in {options.data} to answer")
    columns = first_that(every, options.skip_bad_rows, prompt_columns)
    rows, _ = make_all(lambda row: asked(row, columns), every, bad)
    template: AnyTemplate | None
    if in_jinja(folder, options.template):
        template = template_for(folder, tokenizer, options.template)
    else:
        task_options = TaskOptions(columns, template_name(options, folder), rows=lambda: rows)
        template = AnswerTask(task_options, model, tokenizer).template
        assert template is not None
    answers = Answers(model, tokenizer, template, options.max_new_tokens).to_all(rows, columns)
    return rows, 0, ({"prediction": answer} for answer in answers)
