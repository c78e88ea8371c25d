"""`tinygpt train`: start a run, or resume one."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from .. import backends
from ..console import say
from ..cores import threads_of_environment, usable_cores
from ..data import SequentialBatches, split
from ..errors import UsageError
from ..files import user_path
from ..interop import load_word_vectors
from ..parallel import alone_under_launcher, current, launched
from ..training import (
    Settings,
    TrainingConfig,
    add_run_options,
    add_start_options,
    ask_for_epochs,
    choose_settings,
    describe_batches,
    describe_run,
    make_model,
    make_trainer,
    prepare_text,
    run_folder,
    train_and_evaluate,
    with_epochs,
)
from ..training.final_evaluation import NONE, WHOLE
from ..training.monitoring.following import Following, add_following_options, choose_following, follow
from ..training.settings.config_file import add_config_option, write_configuration
from ..training.storage.folder import TOKENS, RunFolder
from ..training.text.corpus import given_text
from .handover import hand_over
from .process import again
from .sweep import Command, require_no_sweep, sweep
from .together import add_together_options, binding_note, together
from .trial import add_trial_options, built_elsewhere, require_free, trial_needs, try_out

ABOUT = "Train a GPT on a text. Ctrl-C saves and stops; --resume continues with exactly the same bits."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser, out="out/{preset}")
    add_start_options(parser)
    group = parser.add_argument_group("word vectors")
    words = "word2vec, fastText or GloVe vectors, copied to the embeddings of the tokens for their words"
    group.add_argument("--word-vectors", metavar="FILE", help=words)
    words = "also accept vectors of another width than --n-embd: project them, or fill the first channels"
    group.add_argument("--project", action="store_true", help=words)
    add_following_options(parser)
    add_config_option(parser)
    add_together_options(parser)
    add_trial_options(parser)
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Train, and report the loss of the best weights."""
    if launched()[1] > 1:
        return together(options, _lead)
    if options.log_ranks is not None:
        raise UsageError("--log-ranks is for several processes: start the run with mpirun, or leave it out")
    if alone_under_launcher() and threads_of_environment() is None and (words := binding_note([[*usable_cores()]])):
        say(words)
    return _lead(options)


def _lead(options: argparse.Namespace) -> int:
    """The command on a single process, or on the first of several."""
    if current().size > 1:
        _refuse_trials(options)
    if current().size > 1 or alone_under_launcher():
        _refuse_stdin(options)
    if options.sweep is not None:
        out = run_folder(options) if options.out is not None else f"{run_folder(options)}-sweep"
        return sweep(options, Command("train", train, _checked), out)
    _require_consistent(options)
    if options.resume:
        require_no_sweep(run_folder(options))
    if options.dry_run or options.lr_find:
        return _try(options)
    following = choose_following(options, user_path(run_folder(options)))
    settings = choose_settings(options, following.require_loggers)
    with settings.folder:
        return _train(settings, options, following)


def _refuse_trials(options: argparse.Namespace) -> None:
    trials = {"--sweep": options.sweep is not None, "--dry-run": options.dry_run, "--lr-find": options.lr_find}
    for name, given in trials.items():
        if given:
            raise UsageError(f"{name} is for one process: start it without mpirun")


def _refuse_stdin(options: argparse.Namespace) -> None:
    """Open MPI passes the standard input to process 0, but not its end, so the run would hang."""
    if "-" in (given_text(options)[0] or ()):
        raise UsageError("mpirun does not pass on the end of the standard input: write the text to a file for --data")


def _require_consistent(options: argparse.Namespace) -> None:
    if options.word_vectors is None and options.project:
        raise UsageError("--project is for the vectors of --word-vectors: give both, or neither")
    if options.word_vectors is not None and (options.resume or options.init_from is not None):
        raise UsageError("--word-vectors begins a new model: leave it out with --resume and --init-from")
    ask_for_epochs(options)


def _checked(options: argparse.Namespace) -> TrainingConfig:
    """The settings of a run of --sweep, before the text is read."""
    _require_consistent(options)
    following = choose_following(options, user_path(run_folder(options)))
    return choose_settings(options, following.require_loggers).training


def _try(options: argparse.Namespace) -> int:
    """--dry-run and --lr-find: the run is built in a temporary folder."""
    out = run_folder(options)
    with built_elsewhere(options, out) as there:
        following = choose_following(there, user_path(there.out))
        settings = choose_settings(there, following.require_loggers, *trial_needs(options))
        folder = RunFolder(out)
        folder.exports_model = settings.exports_model
        require_free(folder, options, list(settings.data or ()))
        with settings.folder:
            return _train(settings, there, following, folder)


def _train(
    settings: Settings, options: argparse.Namespace, following: Following, try_for: RunFolder | None = None
) -> int:
    """try_for: for a trial, the folder that the run would have."""
    backends.use_backend(settings.backend)
    word_vectors, project = options.word_vectors, options.project
    text = prepare_text(settings)
    if not settings.resume:
        write_configuration(options, settings, settings.folder.place)
    train_tokens, validation_tokens = split(text.tokens, settings.training.validation_fraction)
    settings = with_epochs(settings, options.epochs, train_tokens)
    model = make_model(settings, text.tokenizer)
    if word_vectors is not None:
        found = load_word_vectors(model, text.tokenizer, word_vectors, project=project)
    trainer = make_trainer(settings, model, train_tokens, validation_tokens, text.tokenizer)
    follow(trainer, following, text.tokenizer)
    hand_over(trainer, settings.folder.place / TOKENS, settings.checkpoint)
    if try_for is not None:
        described = describe_run(dataclasses.replace(settings, folder=try_for), text, model)
        final = _final_batches(options.final_eval, settings, validation_tokens)
        return try_out(trainer, options, str(try_for), described, final)
    say(describe_run(settings, text, model))
    if rows := describe_batches(trainer):
        say(rows)
    if word_vectors is not None:
        say(f"Vectors: {found}")
    folder = str(settings.folder)
    go_on = again("train", "--resume", "--out", folder)
    code = train_and_evaluate(trainer, validation_tokens, go_on, options.final_eval)
    if code == 0:
        say(f"Let it write with:\n    {again('sample', '--model', folder)}")
    return code


def _final_batches(how_much: str, settings: Settings, validation_tokens: np.ndarray) -> int:
    if how_much == NONE:
        return 0
    rows, T = settings.training.batch_size, settings.model["block_size"]
    whole = len(SequentialBatches(validation_tokens, rows, T))
    return whole if how_much == WHOLE else min(whole, int(how_much))
