"""A run of `tinygpt finetune`: from a model and rows of data to a trainer.

    with begin_finetuning(options) as run:
        run.trainer.run()

An older run in the folder stays untouched until the rows are read and the new run's first checkpoint is saved. A
resumed run reads its rows again, and is refused if they are not the ones that it was trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ... import backends, tokenizers
from ...checks import whole_number
from ...data.augment import synonyms_in, with_absolute_path
from ...data.chat_template import template_notes, write_templates
from ...data.dialogue import TEMPLATE, end_of_text
from ...data.opening import STDIN
from ...data.rows import BadRows, read_rows
from ...data.splitting import digest_of, same_key
from ...errors import CheckpointError, Need, UsageError
from ...files import shown
from ...gpt import GPT, GPTConfig
from ...tokenizers import Tokenizer
from ..adapters import check_quantize, lora_of_options
from ..loop import Trainer
from ..pretrained import Start, start_as_asked
from ..run import make_model, rehearse
from ..settings.choose import Settings, check_settings, choose_settings
from ..settings.config import TrainingConfig, new_settings
from ..settings.config_file import write_configuration
from ..settings.options import given_options
from ..settings.packages import require_packages
from ..storage.folder import RunFolder
from .data_facts import SPLIT, UTF_8, check_split, read_data_facts, write_data_facts
from .example_rows import (
    Rows,
    columns_note,
    columns_of,
    labels_note,
    labels_of,
    notes_of,
    rare_note,
    read_examples,
    split_examples,
)
from .label_task import LabelTask, label_columns
from .task_options import TaskOptions
from .tasks import TASKS, AnswerTask

EPOCHS = 3
_EITHER = "give either --epochs or --steps, not both"
DEFAULTS: dict[str, Any] = {"batch_size": 8, "lr": 1e-4, "weight_decay": 0.01, "eval_batches": 0}


@dataclass
class Finetuning:
    """A run that is ready to start. notes: what the user should know about the data."""

    settings: Settings
    trainer: Trainer
    tokenizer: Tokenizer
    task: Any
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def begin_finetuning(options: argparse.Namespace, *needs: Need) -> Iterator[Finetuning]:
    """The run that the command line describes; afterwards its folder is unlocked.

    needs: checks of the libraries that the command uses besides, so that all that are missing are named at once.
    Raises UsageError for a mistake in the options or the data, CheckpointError for a run that can't be resumed.
    """
    if options.resume:
        settings = choose_settings(options, *needs)
        with settings.folder:
            yield _resumed(options, settings)
    else:
        with RunFolder(options.out) as folder:
            yield _new(options, folder, *needs)


def checked_options(options: argparse.Namespace) -> TrainingConfig:
    """The settings of a new run as far as they are known before its rows are read. Raises UsageError."""
    check_quantize(options, lora_of_options(options))
    GPTConfig(
        **{"vocab_size": 1, "block_size": 1, "n_layer": 1, "n_head": 1, "n_embd": 1} | given_options(options, GPTConfig)
    )
    return _config(given_options(options, TrainingConfig), options.epochs, 1)


def _new(options: argparse.Namespace, folder: RunFolder, *needs: Need) -> Finetuning:
    if options.model is None or options.data is None:
        raise UsageError("a new run needs a model to start from and rows to learn: give --model MODEL and --data FILE")
    if options.augment is not None:
        options = argparse.Namespace(**vars(options) | {"augment": with_absolute_path(options.augment)})
    if STDIN in (options.data, options.valid):
        raise UsageError(
            "rows are read more than once, so they can't come from a pipe: save them in a file ending in .jsonl"
        )
    lora = lora_of_options(options)
    check_quantize(options, lora)
    folder.exports_model = True
    folder.require_free(options.overwrite)
    given = given_options(options, TrainingConfig)
    facts = _facts(options) | {"skip_bad_rows": options.skip_bad_rows, "labels": None, "fold": options.fold}
    seed = given.get("seed", TrainingConfig.seed)
    dtype, files = given.get("dtype", TrainingConfig.dtype), (options.data, options.valid)
    require_packages(options.backend, dtype, files, *needs, model=options.model, revision=options.revision)
    start = start_as_asked(options, options.model, lora, seed, classifiers=True, packed=options.quantize)
    if lora is not None:
        (start.classifier or start.model).train()
        given = {"lr": 10 * DEFAULTS["lr"]} | given
    named = facts | {"data": options.data, "valid": options.valid}  # in messages as the user wrote them
    prepared = _prepare(named, start.model, start.tokenizer, given | {"seed": seed}, start)
    config = _config(given, options.epochs, len(prepared.train.examples))
    model_settings = {key: value for key, value in start.model.config.to_dict().items() if key != "vocab_size"}
    settings = Settings(
        folder, options.backend or "numpy", model_settings, config, None, (options.data,), None, start=start
    )
    check_settings(settings)
    place = folder.begin(options.overwrite)
    write_configuration(options, settings, place)
    found = {"task": prepared.task.name, "labels": prepared.task.labels, "sha256": prepared.sha256}
    write_data_facts(place, facts | found | {"label_kind": getattr(prepared.task, "kind", None)})
    tokenizer = start.tokenizer if prepared.task.template is None else start.tokenizer.without_chat_template()
    return _finetuning(settings, prepared, tokenizer)


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    """What data.json says about the options of a run, which a resumed run may repeat but not change."""
    names = ("model", "task", "template", "loss_on", "label_smoothing", "class_weights", "quantize", "label_kind",
             "encoding")  # fmt: skip
    augment = None if options.augment is None else with_absolute_path(options.augment)
    return {name: getattr(options, name) for name in names} | {
        "data": _absolute(options.data), "valid": _absolute(options.valid), "augment": augment,
        "label_columns": label_columns(options.label_columns),
    }  # fmt: skip


def _resumed(options: argparse.Namespace, settings: Settings) -> Finetuning:
    folder = settings.folder
    facts = read_data_facts(folder.path)
    for name, value in _facts(options).items():
        if value not in (None, facts.get(name)):  # older runs have fewer
            raise CheckpointError(f"the run in {folder} has the {name} {facts.get(name)}, not {value}: leave it out")
    tokenizer = tokenizers.load(folder.path)
    model = make_model(settings, tokenizer)
    if (folder.path / TEMPLATE).exists() and facts["task"] == AnswerTask.name:
        facts["template"] = str(folder.path / TEMPLATE)  # the file that was given may have changed
    prepared = _prepare(facts, model, tokenizer, dataclasses.asdict(settings.training))
    paths = {"train": facts["data"], "validation": facts["valid"], "synonyms": synonyms_in(facts["augment"])}
    for part, path in paths.items():
        if path is not None and prepared.sha256[part] != facts["sha256"].get(part):
            raise CheckpointError(
                f"the file {shown(path)} has changed since the run in {folder} began: restore it, or start a new run"
            )
    check_split(facts, prepared.sha256.get(SPLIT), labels_of(prepared.train.examples) is not None, folder.path)
    if options.epochs is not None and "steps" in given_options(options, TrainingConfig):
        raise UsageError(_EITHER)
    if options.epochs is not None:
        steps = _config({}, options.epochs, len(prepared.train.examples), settings.training).steps
        assert settings.checkpoint is not None
        if steps < settings.checkpoint.step:
            raise UsageError(
                f"the run in {folder} is already at step {settings.checkpoint.step}: {options.epochs:g} epochs would "
                f"end at step {steps}, so give more"
            )
        settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, steps=steps))
    return _finetuning(settings, prepared, tokenizer, model)


# The data ---------------------------------------------------------------------------------------------


@dataclass
class Prepared:
    """The task with its training and validation examples."""

    task: Any
    train: Rows
    validation: Rows
    sha256: dict[str, str]
    notes: list[str]


def _prepare(
    facts: dict[str, Any], model: GPT, tokenizer: Tokenizer, config: dict[str, Any], start: Start | None = None
) -> Prepared:
    skip, encoding = facts["skip_bad_rows"], facts["encoding"] or UTF_8
    task_name, columns, others = columns_of(facts["data"], facts["task"], skip, encoding, facts["label_columns"])
    options = TaskOptions(
        columns, facts["template"], facts["loss_on"],
        partial(read_rows, facts["data"], encoding, columns, BadRows() if skip else None),
        facts["labels"], facts["label_smoothing"], facts["class_weights"], facts["augment"],
        start and start.classifier, facts.get("label_kind"), (facts["data"], facts["valid"] or facts["data"]),
        None if start is None else start.template,
    )  # fmt: skip
    task = TASKS[task_name](options, model, tokenizer)
    rows = read_examples(facts["data"], columns, task, skip, encoding)
    notes = columns_note(task_name, others) + notes_of(rows, facts["data"], model.config.block_size)
    notes += labels_note(rows.examples, task.labels or ())
    if start is not None and task.template is not None and facts["template"] is None:
        notes += template_notes(start.template, start.chat_template)
    if facts["valid"] is not None:
        validation = read_examples(facts["valid"], columns, task, skip, encoding, purpose="validate on")
        notes += notes_of(validation, facts["valid"], model.config.block_size)
        both = {same_key(example.key) for example in rows.examples}
        common = sum(same_key(example.key) in both for example in validation.examples)
        if common:
            notes.append(f"{common} validation rows have a text or prompt that also occurs in the training rows")
        sha256 = {"train": rows.sha256, "validation": validation.sha256}
    else:
        first, second = split_examples(rows.examples, facts["data"], facts["fold"], config)
        sha256 = {"train": rows.sha256, SPLIT: digest_of(second)}
        notes += rare_note(rows.examples, second, task.labels or ())
        validation = Rows([rows.examples[i] for i in second], BadRows(), "")
        rows = Rows([rows.examples[i] for i in first], rows.bad, rows.sha256)
        notes.append(f"{len(second)} of {len(first) + len(second)} rows are for validation; equal texts or prompts are "
                     "on one side")  # fmt: skip
    if task.synonyms_sha256 is not None:
        sha256["synonyms"] = task.synonyms_sha256
    return Prepared(task, rows, validation, sha256, notes)


# The run ----------------------------------------------------------------------------------------------


def _config(
    given: dict[str, Any], epochs: float | None, rows: int, base: TrainingConfig | None = None
) -> TrainingConfig:
    """The settings of a run over `rows` rows: by default one evaluation and one checkpoint per epoch."""
    values = (dataclasses.asdict(base) if base is not None else DEFAULTS) | given
    together = whole_number("training", "batch_size", values["batch_size"]) * whole_number(
        "training", "gradient_accumulation", values.get("gradient_accumulation", TrainingConfig.gradient_accumulation)
    )
    per_epoch = -(-rows // together)
    if epochs is not None and "steps" in given:
        raise UsageError(_EITHER)
    if epochs is not None and not 0 < epochs < 1e6:
        raise UsageError(f"epochs must be above 0 and below 1,000,000, not {epochs:g}")
    steps = given.get("steps", max(1, round((EPOCHS if epochs is None else epochs) * per_epoch)))
    if base is not None:
        return dataclasses.replace(base, steps=steps)
    often = {"warmup_steps": steps // 10, "eval_every": per_epoch, "checkpoint_every": per_epoch}
    return TrainingConfig.from_dict(new_settings(often | DEFAULTS, given) | {"steps": steps})


def _finetuning(settings: Settings, prepared: Prepared, tokenizer: Tokenizer, model: GPT | None = None) -> Finetuning:
    folder, task = settings.folder, prepared.task
    backends.use_backend(settings.backend)
    model = task.model_on(make_model(settings, tokenizer) if model is None else model)
    model.to(settings.backend)
    if settings.start is not None and task.name != LabelTask.name:
        start, end = settings.start, end_of_text(model, tokenizer)
        write_templates(folder.place, task.template or start.template, tokenizer, end, start.chat_template)
    objective = task.objective(prepared.train.examples, prepared.validation.examples, settings.training)
    trainer = Trainer(model, None, None, settings.training, folder, objective=objective, tokenizer=tokenizer)
    if settings.checkpoint is not None:
        trainer.resume(settings.checkpoint)
    elif folder.replaces:
        rehearse(trainer)
    return Finetuning(settings, trainer, tokenizer, task, prepared.notes)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
