"""`tinygpt train`: a new run, or an old one gone on with."""

from __future__ import annotations

import argparse

from .. import backends
from ..console import say
from ..data import split
from ..gpt import GPT, GPTConfig
from ..training import (
    Settings,
    Trainer,
    add_run_options,
    choose_settings,
    describe_run,
    evaluate,
    prepare_text,
    rehearse,
)
from .process import again

ABOUT = "Train a GPT on a text. Ctrl-C saves; --resume goes on bit for bit."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser, out="out/{preset}")
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Train, and say how good the model is in the end."""
    settings = choose_settings(options)
    with settings.folder:
        return _train(settings)


def _train(settings: Settings) -> int:
    backends.use_backend(settings.backend)
    text = prepare_text(settings)
    train_tokens, validation_tokens = split(text.tokens, settings.training.validation_fraction)
    model = GPT(GPTConfig(vocab_size=text.tokenizer.vocab_size, **settings.model), seed=settings.training.seed)
    trainer = Trainer(model, train_tokens, validation_tokens, settings.training, settings.folder)
    if settings.checkpoint is not None:
        trainer.resume(settings.checkpoint)
    elif settings.folder.replaces:
        rehearse(trainer)
    say(describe_run(settings, text, model))
    result = trainer.run()
    if result.signal is not None:
        say(
            f"Saved at step {result.step}. Go on with:\n    {again('train', '--resume', '--out', str(settings.folder))}"
        )
        return 128 + result.signal
    say(result.summary())
    step = trainer.load_best()
    loss = evaluate(model, validation_tokens, settings.training.batch_size, progress=True)
    say(f"Loss over the whole validation text: {loss:.4f} (the best weights, of step {step})")
    say(f"Let it write with:\n    {again('sample', '--model', str(settings.folder))}")
    return 0
