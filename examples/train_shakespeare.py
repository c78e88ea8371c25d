"""Train a GPT on Shakespeare, from text to sample: the way of the data through tinygpt.

    python examples/train_shakespeare.py                      # about two minutes on two cores
    python examples/train_shakespeare.py --data my_text.txt   # any UTF-8 text
    python examples/train_shakespeare.py --resume             # after Ctrl-C: goes on bit for bit

    text -> tokenizer -> ids in a memory-mapped file -> batches -> model -> loss -> gradients -> AdamW -> sample

Every setting is an option (see --help); a preset is a set of them. The training loop is `Trainer`. What it does at
each step, without the bookkeeping (progress, metrics, evaluation, checkpoints), is these lines:

    inputs, targets = batches.batch(step)                     # (B, T) ids, and the ids that follow them
    loss = model.loss(inputs, targets)                        # mean cross-entropy
    loss.backward()                                           # a gradient for every parameter
    optimizer.lr = schedule(step)                             # warm-up, then a cosine
    norm = tg.optim.grad_norm(model.parameters())
    optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0))
    optimizer.zero_grad()
"""

from __future__ import annotations

import argparse

import tinygpt as tg
from tinygpt.cli import OptionParser, add_sampling_options, again, check_sampling_options, exit_with, sample_text
from tinygpt.console import say
from tinygpt.training import (
    Settings,
    add_run_options,
    choose_settings,
    describe_run,
    make_trainer,
    prepare_text,
    train_and_evaluate,
)


def parse_options() -> argparse.Namespace:
    parser = OptionParser(description="Train a GPT on Shakespeare.", epilog="Ctrl-C saves; --resume goes on.")
    add_run_options(parser, out="out/shakespeare-{preset}")
    add_sampling_options(parser)  # for the sample at the end
    return parser.parse_args()


def main() -> int:
    options = parse_options()

    # The settings: a preset's and the command line's or, with --resume, those in the checkpoint. The folder is this
    # run's alone until the end of the block.
    settings = choose_settings(options)
    with settings.folder:
        return train(settings, options)


def train(settings: Settings, options: argparse.Namespace) -> int:
    config = settings.training
    tg.use_backend(settings.backend)

    # The text, a character a token: encoded once into a file, of which only what is used is read. A mistake in the
    # options of the sample is found here, not after the training.
    text = prepare_text(settings, check=lambda tokenizer: check_sampling_options(tokenizer, options))
    train_tokens, validation_tokens = tg.data.split(text.tokens, config.validation_fraction)

    # The model, its weights drawn from the seed.
    model = tg.GPT(tg.GPTConfig(vocab_size=text.tokenizer.vocab_size, **settings.model), seed=config.seed)

    # Training: checkpoints, metrics.jsonl and loss_curve.png appear in the folder. With --overwrite an older run stays
    # there until the new one has saved its first checkpoint. At the end the model has the weights that were best, and
    # it is said how good these are, over every character that it was not trained on.
    trainer = make_trainer(settings, model, train_tokens, validation_tokens)
    say(describe_run(settings, text, model))
    code = train_and_evaluate(trainer, validation_tokens, again("--resume", "--out", str(settings.folder)))
    if code != 0:
        return code  # Ctrl-C: all is saved

    # And what it writes.
    say("")
    for piece in sample_text(model, text.tokenizer, options, seed=config.seed):
        print(piece, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    exit_with(main)
