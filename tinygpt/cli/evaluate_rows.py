"""`tinygpt eval` on rows: a classifier on labelled texts; a language model on texts or on prompts with answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..exchange import read_whole
from ..files import shown
from .rows import class_predictions, label_kind, make_all, notes, rows_in, write_json, write_predictions

if TYPE_CHECKING:
    from ..data import Row


def evaluate_classifier(options: argparse.Namespace, clf: Any, tokenizer: Any, folder: Path) -> int:
    """Print accuracy, macro F1 and the confusion matrix, or the errors of a regression."""
    from ..data import BadRows
    from ..data.labelled import LABEL, TEXT, LabelledExamples
    from ..metrics.labelling import label_report, label_scores, label_table
    from ..training.finetuning.held_out import validation_file
    from ..training.storage.folder import DATA

    if options.data is None and not (folder / DATA).exists():
        raise UsageError(f"{folder} holds a classifier: give rows with a text and a label, with --data FILE")
    bad = BadRows() if options.skip_bad_rows else None
    path = validation_file(folder).path if options.data is None else options.data
    encoding = validation_file(folder).encoding if options.data is None else options.encoding
    first = next(iter(rows_in(path, (), BadRows(), encoding)), None)
    kind, columns = label_kind(clf), (TEXT, LABEL)
    if kind == "multi" and first is not None and first.values.keys() >= {*clf.label_names}:
        kind, columns = "columns", (TEXT, *clf.label_names)
    maker = LabelledExamples(tokenizer, clf.config.block_size, clf.label_names, kind)
    every = rows_in(path, columns, bad, options.encoding)
    rows, examples = make_all(maker.make, _held_out(options, folder, maker) if options.data is None else every, bad)
    if not rows:
        why = f": {bad.sentences[0]}" if bad is not None and bad.sentences else ""
        raise UsageError(f"there is no row in {shown(path)} to evaluate on{why}")
    scores = label_scores(clf, examples, options.batch_size, progress=True)
    report = label_report(clf, scores, [example.label for example in examples])
    cut = sum(example.truncated for example in examples)
    print(notes(path, len(rows), cut, bad, clf.config.block_size) + _learned(options, folder))
    print(label_table(report))
    if options.json:
        write_json(options.json, {"task": "classify", "data": path, "truncated": cut} | report)
    if options.predictions:
        write_predictions(options.predictions, rows, class_predictions(clf, scores))
    return 0


def evaluate_language_model(options: argparse.Namespace, model: Any, tokenizer: Any, folder: Path) -> int:
    """Print the loss on the texts or answers of the rows, and metrics of the model's own answers."""
    from ..data import BadRows
    from ..data.examples import collate
    from ..data.jinja_examples import JinjaExamples
    from ..data.jinja_template import in_jinja, template_for
    from ..data.row_batches import AllRows
    from ..training import mean_loss
    from ..training.finetuning.held_out import validation_file
    from ..training.finetuning.task_options import TaskOptions
    from ..training.finetuning.tasks import AnswerTask, TextTask
    from .answers import Answers, columns_of, template_name

    path, encoding, skip, its = options.data, options.encoding, options.skip_bad_rows, None
    if path is None:
        path, _, encoding, skip, its = validation_file(folder)
    bad = BadRows() if skip else None
    all_rows = list(rows_in(path, (), bad, encoding))
    if not all_rows:
        raise UsageError(f"there are no rows in {shown(path)}")
    task, columns = columns_of(all_rows, skip, its)
    _require_language(task, options, folder, path)
    asked: Any
    if task == "sft" and in_jinja(folder, options.template):
        template: Any = template_for(folder, tokenizer, options.template)
        maker = JinjaExamples(tokenizer, model.config.block_size, columns, template)
        asked = SimpleNamespace(maker=maker, template=template)
    else:
        name = template_name(options, folder) if task == "sft" else options.template
        task_options = TaskOptions(columns, name, rows=lambda: all_rows)
        asked = (AnswerTask if task == "sft" else TextTask)(task_options, model, tokenizer)
    if options.data is None:
        all_rows, bad = _held_out(options, folder, asked.maker), None
    rows, examples = make_all(asked.maker.make, all_rows, bad)
    if not rows:
        raise UsageError(f"there is no row in {shown(path)} to evaluate on: {bad and bad.sentences[0]}")
    loss = mean_loss(model, AllRows(examples, options.batch_size, collate))
    targets = int(sum(example.learned[1:].sum() for example in examples))
    report: dict[str, Any] = {
        "rows": len(rows), "loss": loss, "tokens": targets, "perplexity": float(np.exp(loss))
    }  # fmt: skip
    cut = sum(example.truncated for example in examples)
    print(notes(path, len(rows), cut, bad, model.config.block_size) + _learned(options, folder))
    print(f"loss {loss:.4f} nats per token over {targets} tokens (perplexity {report['perplexity']:.2f})")
    answers: list[str] = []
    if asked.template is not None:
        answers = Answers(model, tokenizer, asked.template, options.max_new_tokens).to_all(rows, columns)
        report |= _judged(answers, rows, columns, options)
    if options.json:
        write_json(options.json, {"task": task, "data": path, "truncated": cut} | report)
    if options.predictions:
        write_predictions(options.predictions, rows, ({"prediction": answer} for answer in answers))
    return 0


def _require_language(task: str, options: argparse.Namespace, folder: Path, path: str) -> None:
    """Raise UsageError for rows or options that don't suit a language model."""
    if task == "classify":
        raise UsageError(
            f"{folder} holds a language model, but {shown(path)} has labels: make a classifier of it with "
            "`tinygpt finetune`"
        )
    if task == "text" and options.predictions:
        raise UsageError("--predictions is for rows with labels or answers: on a text there is only a loss")


def _judged(
    answers: list[str], rows: list[Row], columns: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """Print and return the metrics of the answers along with those of the rows."""
    from ..data.columns import dialogue_of
    from .answers import answer_report

    right = [dialogue_of(row, columns).turns[-1][1].strip() for row in rows]
    figures = answer_report(answers, right, tuple(options.metrics or ()))
    print("  ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in figures.items()))
    return figures


def _held_out(options: argparse.Namespace, folder: Path, maker: Any) -> list[Row]:
    from ..training.finetuning.held_out import held_out_rows

    return read_whole(folder, lambda place: held_out_rows(place, options.checkpoint or "best", maker))


def _learned(options: argparse.Namespace, folder: Path) -> str:
    """How the run in the folder used these rows."""
    from ..training.finetuning.held_out import learned_from, validation_file

    if options.data is None:
        given = validation_file(folder).part == "validation"  # which may repeat what was learned
        chosen = "" if options.checkpoint == "latest" else "; but its best weights were chosen on them"
        return f", {'those of --valid' if given else 'from which the run did not learn'}{chosen}"
    if learned_from(folder, options.data):
        return "; the run learned from rows of this file: leave --data out to evaluate it on the others"
    return ""


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
