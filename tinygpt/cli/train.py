"""`tinygpt train`: start a run, or resume one."""

from __future__ import annotations

import argparse

from .. import backends
from ..console import say
from ..data import split
from ..training import (
    Settings,
    add_run_options,
    add_start_options,
    choose_settings,
    describe_run,
    make_model,
    make_trainer,
    prepare_text,
    train_and_evaluate,
)
from .process import again

ABOUT = "Train a GPT on a text. Ctrl-C saves and stops; --resume continues with exactly the same bits."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser, out="out/{preset}")
    add_start_options(parser)
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Train, and report the loss of the best weights."""
    settings = choose_settings(options)
    with settings.folder:
        return _train(settings)


def _train(settings: Settings) -> int:
    backends.use_backend(settings.backend)
    text = prepare_text(settings)
    train_tokens, validation_tokens = split(text.tokens, settings.training.validation_fraction)
    model = make_model(settings, text.tokenizer)
    trainer = make_trainer(settings, model, train_tokens, validation_tokens, text.tokenizer)
    say(describe_run(settings, text, model))
    folder = str(settings.folder)
    code = train_and_evaluate(trainer, validation_tokens, again("train", "--resume", "--out", folder))
    if code == 0:
        say(f"Let it write with:\n    {again('sample', '--model', folder)}")
    return code
