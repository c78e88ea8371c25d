"""The tasks of `tinygpt finetune`: rows become examples, and examples become an objective.

| task | a row | learned |
|---|---|---|
| text | a text | all of it |
| sft | a dialogue, a question, an instruction | the answers, or everything (`loss_on`) |
| classify | a text and a label | the label (`label_task.py`) |

To add a task, write a class here and add its columns to `tinygpt/data/columns.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from ...data.columns import VERBATIM, is_conversation
from ...data.dialogue import Template, end_of_text, read_template
from ...data.examples import AnswerExamples, Example, TextExamples, collate
from ...data.row_batches import AllRows, RowBatches
from ...errors import UsageError
from ...gpt import GPT
from ...tokenizers import Tokenizer
from ..objective import Objective
from ..settings.config import TrainingConfig
from .label_task import LabelTask
from .task_options import TaskOptions

LOSS_ON = ("answer", "all")


class TextTask:
    """One text per row."""

    name: ClassVar[str] = "text"
    template: Template | None = None
    labels: Sequence[str] | None = None
    synonyms_sha256: str | None = None

    def __init__(self, options: TaskOptions, model: GPT, tokenizer: Tokenizer) -> None:
        for option, value in (("--template", options.template), ("--loss-on", options.loss_on)):
            if value is not None:
                raise UsageError(
                    f"{option} is for dialogues and prompts with answers, not for the task text: leave it out"
                )
        _refuse_label_options(self.name, options)
        self.maker = TextExamples(tokenizer, model.config.block_size, end_of_text(model, tokenizer))

    def model_on(self, body: GPT) -> Any:
        """The model to train: the starting model itself."""
        return body

    def objective(self, train: Sequence[Example], validation: Sequence[Example], config: TrainingConfig) -> Objective:
        """What the run learns."""
        batches = RowBatches(train, config.batch_size, config.gradient_accumulation, config.seed, collate)
        count = batches.steps_per_epoch * config.gradient_accumulation
        tokens = -(-sum(len(example) - 1 for example in train) // count)
        rows = AllRows(validation, config.batch_size, collate, config.eval_batches)
        return Objective(batches, rows, tokens, {"train": digest(train), "validation": digest(validation)})


class AnswerTask(TextTask):
    """Supervised fine-tuning: one or several answers per row."""

    name = "sft"

    def __init__(self, options: TaskOptions, model: GPT, tokenizer: Tokenizer) -> None:
        _refuse_label_options(self.name, options)
        end = end_of_text(model, tokenizer)
        self.template = _template(options, end)
        loss_on = options.loss_on or LOSS_ON[0]
        self.maker = AnswerExamples(tokenizer, model.config.block_size, end, options.columns, self.template, loss_on)
        if end is None:  # generation must stop at the text with which the model has learned to end its answers
            model.generation_config = dict(model.generation_config) | {"stop_strings": list(self.template.stops)}


TASKS: dict[str, Any] = {task.name: task for task in (TextTask, AnswerTask, LabelTask)}


def _refuse_label_options(task: str, options: TaskOptions) -> None:
    if options.classifier is not None:
        raise UsageError(
            f"the model is a classifier, which has no head for the task {task}: give rows with the columns text and "
            "label, or start from a language model"
        )
    for option, value in (
        ("--label-smoothing", options.label_smoothing), ("--class-weights", options.class_weights),
        ("--augment", options.augment), ("--label-kind", options.label_kind),
    ):  # fmt: skip
        if value is not None:
            raise UsageError(f"{option} is for the task classify, not for the task {task}: leave it out")


def _template(options: TaskOptions, end: int | None) -> Template:
    """The template that was asked for, or else the model's own, or else the usual one for the columns."""
    if options.template is None and options.own_template is not None:
        return options.own_template
    first = next(iter(options.rows()), None) if options.template is None else None
    conversation = first is not None and is_conversation(first, options.columns)
    return read_template(options.template or _default_template(options.columns, end, conversation))


def _default_template(columns: tuple[str, ...], end: int | None, conversation: bool) -> str:
    """Prompts and completions follow each other unchanged if a token can end them; other columns need text around."""
    if columns != VERBATIM or conversation:
        return "plain"
    return "raw" if end is not None else "lines"


def digest(examples: Sequence[Example]) -> str:
    """Identifies examples: their tokens, and which of them are learned."""
    found = hashlib.sha256(str(len(examples)).encode())
    for example in examples:
        for array in (example.ids, example.learned):
            found.update(len(array).to_bytes(8, "little") + array.tobytes())
    return found.hexdigest()
