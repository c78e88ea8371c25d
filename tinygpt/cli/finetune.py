"""`tinygpt finetune`: train a model for a task, on rows of data."""

from __future__ import annotations

import argparse
import dataclasses

from .. import backends, kernel
from ..console import say
from ..data.dialogue import PRESETS, TEMPLATE
from ..errors import UsageError
from ..files import user_path
from ..training import TrainingConfig
from ..training.adapters import add_lora_options, add_quantize_option
from ..training.finetuning.label_task import BALANCED, KINDS
from ..training.finetuning.run import DEFAULTS, EPOCHS, Finetuning, begin_finetuning, checked_options
from ..training.finetuning.tasks import LOSS_ON, TASKS
from ..training.monitoring.following import add_following_options, choose_following, follow
from ..training.settings.config_file import add_config_option
from ..training.settings.options import add_field_options
from ..training.storage.folder import RunFolder
from .process import again
from .sweep import Command, require_no_sweep, sweep
from .together import require_one_process
from .trial import add_trial_options, built_elsewhere, require_free, trial_needs, try_out

ABOUT = """Fine-tune a model on rows of JSON lines, CSV or TSV. The columns determine the task: `text`; `prompt` and
`completion`, `question` and `answer`, or `instruction`, `input` and `output`; `messages` with role and content; `text`
and `label`, for a classifier."""


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    words = "the model to start from: a training run, a GPT-2 directory, nanoGPT's ckpt.pt, or a name such as gpt2"
    group.add_argument("--model", metavar="MODEL", help=words)
    words = "branch, tag or commit of a model that is given by its name (default: main)"
    group.add_argument("--revision", metavar="REV", help=words)
    words = "folder for all files of the run (default: %(default)s)"
    group.add_argument("--out", metavar="FOLDER", default="out/finetuned", help=words)
    group.add_argument("--backend", choices=backends.NAMES, help="CPU or GPU (default: numpy)")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue from the latest checkpoint in --out")
    either.add_argument("--overwrite", action="store_true", help="replace the run in --out with a new one")
    _add_data_options(parser.add_argument_group("the data"))
    _add_label_options(parser.add_argument_group("classification"))
    group = parser.add_argument_group("the model")
    missing, words = argparse.SUPPRESS, "block size, at most the model's own; a shorter block is faster"
    group.add_argument("--block-size", type=int, metavar="N", default=missing, help=words)
    words = "fraction of activations set to zero in training (default: the model's own)"
    group.add_argument("--dropout", type=float, metavar="X", default=missing, help=words)
    words = "add a token to the vocabulary, with the mean of the other embeddings (may be given several times)"
    group.add_argument("--add-token", action="append", metavar="TEXT", help=words)
    words = f"train on each row X times, instead of --steps (default: {EPOCHS})"
    parser.add_argument("--epochs", type=float, metavar="X", help=words)
    add_field_options(parser, TrainingConfig, "training", {"finetune": DEFAULTS}, HELP,
                      skip=("order", "pack", "shard_optimizer"))  # fmt: skip
    add_quantize_option(add_lora_options(parser))
    add_following_options(parser)
    add_config_option(parser)
    add_trial_options(parser)
    parser.set_defaults(run=finetune, fold=None, preset=None, tokenizer=None, tokenizer_size=None)


HELP = {
    "steps": "total number of optimizer steps, instead of --epochs",
    "validation_fraction": "fraction of the rows for validation, without --valid",
    "warmup_steps": "steps over which the learning rate rises from zero (default: a tenth of all)",
    "eval_every": "steps between evaluations (default: one epoch)",
    "checkpoint_every": "steps between checkpoints (default: one epoch)",
}


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    words = "rows to train on: .jsonl, .csv or .tsv, plain, .gz, .xz or .zst"
    group.add_argument("--data", metavar="FILE", help=words)
    words = "rows to evaluate on (default: part of --data; rows with equal texts or prompts stay together)"
    group.add_argument("--valid", metavar="FILE", help=words)
    group.add_argument("--task", choices=tuple(TASKS), help="what to learn (default: from the columns)")
    words = (
        f"the text around prompt and answer: {', '.join(PRESETS)}, or a TOML file (default: for prompt and completion "
        "raw, or lines if the model has no end-of-text token; plain for other columns)"
    )
    group.add_argument("--template", metavar="NAME_OR_FILE", help=words)
    words = "learn the answers only, or the prompts as well (default: answer)"
    group.add_argument("--loss-on", choices=LOSS_ON, help=words)
    words = "encoding of --data and --valid: utf-8, gb18030, latin-1 ...; a byte order mark wins (default: utf-8)"
    group.add_argument("--encoding", metavar="NAME", help=words)
    group.add_argument("--skip-bad-rows", action="store_true", help="skip and count rows that can't be used")


def _add_label_options(group: argparse._ArgumentGroup) -> None:
    words = (
        "single: one label per text; multi: a list of labels in JSON, or labels separated by | in any file, each "
        "learned independently; number: a regression (default: multi for lists, otherwise single)"
    )
    group.add_argument("--label-kind", choices=tuple(KINDS), help=words)
    words = "several labels per text, each in its own column of 0s and 1s, such as toxic,obscene,threat"
    group.add_argument("--label-columns", metavar="A,B,...", help=words)
    words = "spread this share of a label evenly over all labels, against overconfidence (default: 0)"
    group.add_argument("--label-smoothing", type=float, metavar="X", help=words)
    words = "balanced: every label has the same weight, however rare it is (default: every row has)"
    group.add_argument("--class-weights", choices=(BALANCED,), help=words)
    words = (
        "change the training texts at random in each epoch: deletion=0.1,swap=0.1,synonyms=FILE; each line of "
        "FILE is a group of synonyms"
    )
    group.add_argument("--augment", metavar="WHAT", help=words)
    words = "cross-validation: train K classifiers, each tested on its own part of the rows; equal texts stay together"
    group.add_argument("--folds", type=int, metavar="K", help=words)


def finetune(options: argparse.Namespace) -> int:
    """Fine-tune, and report the best evaluation."""
    require_one_process("finetune")
    if options.folds is not None:
        if options.dry_run or options.lr_find or options.sweep is not None:
            raise UsageError("--folds makes its own runs: leave out --dry-run, --lr-find and --sweep")
        from .cross_validation import cross_validate

        return cross_validate(options)
    if options.sweep is not None:
        return sweep(options, Command("finetune", finetune, checked_options), options.out)
    if options.resume:
        require_no_sweep(options.out)
    if options.dry_run or options.lr_find:
        return _try(options)
    following = choose_following(options, user_path(options.out))
    with begin_finetuning(options, following.require_loggers) as run:
        follow(run.trainer, following, run.tokenizer, run.task.template)
        say(_description(run))
        result = run.trainer.run()
        if result.signal is not None:
            resume = again("finetune", "--resume", "--out", str(run.settings.folder))
            say(f"Saved at step {result.step}. Resume with:\n    {resume}")
            return 128 + result.signal
        say(result.summary())
        say(_what_next(run, result.best_step))
    return 0


def _try(options: argparse.Namespace) -> int:
    """--dry-run and --lr-find: the run is built in a temporary folder."""
    with built_elsewhere(options, options.out) as there:
        folder = RunFolder(options.out)
        folder.exports_model = True
        require_free(folder, options, [path for path in (options.data, options.valid) if path is not None])
        following = choose_following(there, user_path(there.out))
        with begin_finetuning(there, following.require_loggers, *trial_needs(options)) as run:
            follow(run.trainer, following, run.tokenizer, run.task.template)
            run.settings = dataclasses.replace(run.settings, folder=folder)
            return try_out(run.trainer, options, options.out, _description(run))


def _description(run: Finetuning) -> str:
    settings, model = run.settings, run.trainer.model
    training, batches = settings.training, run.trainer.batches
    begin = settings.checkpoint.step if settings.checkpoint is not None else 0
    rows = len(batches.examples)  # type: ignore[attr-defined]
    rows_a_step = f"{training.gradient_accumulation} x {training.batch_size}"
    lines = {
        "Task": f"{run.task.name}, {rows:,} rows to train on" + "".join(f";\n       {note}" for note in run.notes),
        "Model": f"{settings.start.name if settings.start is not None else settings.folder}, block "
        f"{model.config.block_size}: {model.num_parameters():,} parameters, "
        f"{sum(parameter.size for parameter in run.trainer.parameters):,} of them trained",
        "Run": f"steps {begin} to {training.steps}, each of {rows_a_step} rows; saved in {settings.folder}",
        "On": kernel.describe(settings.backend),
    }
    return "\n".join(f"{name + ':':<7}{line}" for name, line in lines.items())


def _what_next(run: Finetuning, best_step: int) -> str:
    folder = str(run.settings.folder)
    words = "the weights that it started with" if best_step == 0 else f"those of step {best_step}"
    lines = [f"The best weights are {words}. Try them with:"]
    if run.task.name == "classify":
        lines.append(f"    {again('eval', '--model', folder)}")
        lines.append(f"    {again('predict', '--model', folder, '--data', 'FILE')}")
    elif run.task.template is None:
        lines.append(f"    {again('sample', '--model', folder)}")
    else:
        lines.append(f"    {again('chat', '--model', folder)}")
        template = f"{folder}/{TEMPLATE}"
        lines.append(f"    {again('sample', '--model', folder, '--template', template, '--prompt', '...')}")
    return "\n".join(lines)
