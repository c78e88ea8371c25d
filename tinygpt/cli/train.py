"""`tinygpt train`: start a run, or resume one."""

from __future__ import annotations

import argparse

from .. import backends
from ..console import say
from ..data import split
from ..errors import UsageError
from ..interop import load_word_vectors
from ..training import (
    Settings,
    add_run_options,
    add_start_options,
    ask_for_epochs,
    choose_settings,
    describe_batches,
    describe_run,
    make_model,
    make_trainer,
    prepare_text,
    train_and_evaluate,
    with_epochs,
)
from ..training.configuration import add_config_option, write_configuration
from ..training.following import Following, add_following_options, choose_following, follow
from .process import again

ABOUT = "Train a GPT on a text. Ctrl-C saves and stops; --resume continues with exactly the same bits."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser, out="out/{preset}")
    add_start_options(parser)
    group = parser.add_argument_group("word vectors")
    words = "word2vec's, fastText's or GloVe's vectors, copied to the embeddings of the tokens that are their words"
    group.add_argument("--word-vectors", metavar="FILE", help=words)
    words = "vectors of another width than --n-embd are projected, or fill its first channels"
    group.add_argument("--project", action="store_true", help=words)
    add_following_options(parser)
    add_config_option(parser)
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Train, and report the loss of the best weights."""
    if options.word_vectors is None and options.project:
        raise UsageError("--project is for the vectors of --word-vectors: give both, or neither")
    if options.word_vectors is not None and (options.resume or options.init_from is not None):
        raise UsageError("--word-vectors begins a new model: leave it out with --resume and --init-from")
    ask_for_epochs(options)
    settings = choose_settings(options)
    with settings.folder:
        return _train(settings, options, choose_following(options, settings.folder.path))


def _train(settings: Settings, options: argparse.Namespace, following: Following) -> int:
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
