"""One run, from a model and its text to the loss of its best weights: what `tinygpt train` and the example share.

    settings = choose_settings(options)                         # settings.py
    with settings.folder:                                       # folder.py
        text = prepare_text(settings)                           # text.py: a tokenizer and memory-mapped tokens
        train_tokens, validation_tokens = tinygpt.data.split(text.tokens, settings.training.validation_fraction)
        model = GPT(GPTConfig(vocab_size=text.tokenizer.vocab_size, **settings.model), seed=settings.training.seed)
        trainer = make_trainer(settings, model, train_tokens, validation_tokens)
        print(describe_run(settings, text, model))
        code = train_and_evaluate(trainer, validation_tokens, "the command that goes on after Ctrl-C")

A run's folder holds `tinygpt-run.json` (what in it is the run's, see `folder.py`), `text.json` (which text it was), the
tokenizer (`tokenizer.tinygpt.json`, or `tokenizer.json` and its kin, see `tokenizers/bpe_files.py`), `tokens.npy`, the
checkpoints (see `tinygpt/checkpoint.py`), `metrics.jsonl` and `loss_curve.png`. `tinygpt.interop.load` makes a model
and a tokenizer of it again.
"""

from __future__ import annotations

import numpy as np

from .. import kernel
from ..console import say
from ..gpt import GPT
from .evaluation import evaluate
from .loop import Trainer
from .settings import Settings
from .text import Text


def make_trainer(settings: Settings, model: GPT, train_tokens: np.ndarray, validation_tokens: np.ndarray) -> Trainer:
    """The trainer of a run. One that is resumed stands where its checkpoint was saved; one that is to replace an older
    run has shown that it can make a step, since the older one is lost from its first checkpoint on."""
    trainer = Trainer(model, train_tokens, validation_tokens, settings.training, settings.folder)
    if settings.checkpoint is not None:
        trainer.resume(settings.checkpoint)
    elif settings.folder.replaces:
        rehearse(trainer)
    return trainer


def rehearse(trainer: Trainer) -> None:
    """One forward and backward pass of the first batch, which changes nothing: what a step needs is there.

    For a new run that is to replace an older one, before it does.
    """
    model, state = trainer.model, trainer.model.generator.state_dict()
    with model.compute_in(trainer.config.dtype):
        model.loss(*trainer.batches.batch(0)).backward()
    trainer.optimizer.zero_grad()
    model.generator.load_state_dict(state)


def describe_run(settings: Settings, text: Text, model: GPT) -> str:
    """What is about to run, and on what: a few lines to print before training."""
    config, training = model.config, settings.training
    in_dtype = "" if training.dtype == "float32" else f", activations in {training.dtype}"
    begin = settings.checkpoint.step if settings.checkpoint is not None else 0
    lines = {
        "Text": f"{text.description}; {len(text.tokens):,} tokens, {text.tokenizer.vocab_size} different, the last "
        f"{training.validation_fraction:.0%} for validation",
        "Model": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, block "
        f"{config.block_size}, dropout {config.dropout:g}, {'with' if config.bias else 'no'} biases: "
        f"{model.num_parameters():,} parameters",
        "Run": f"steps {begin} to {training.steps}, each {training.gradient_accumulation} x {training.batch_size} x "
        f"{config.block_size} tokens{in_dtype}; kept in {settings.folder}",
        "On": kernel.describe(settings.backend),
    }
    return "\n".join(f"{name + ':':<7}{line}" for name, line in lines.items())


def train_and_evaluate(trainer: Trainer, validation_tokens: np.ndarray, go_on: str) -> int:
    """Train to the end, then say how good the best weights are, which the model has from then on.

    go_on: the command that resumes the run. Returns an exit code: 0, or 128 + the signal that stopped it, where all is
    saved and nothing was evaluated.
    """
    result = trainer.run()
    if result.signal is not None:
        say(f"Saved at step {result.step}. Go on with:\n    {go_on}")
        return 128 + result.signal
    say(result.summary())
    step = trainer.load_best()
    loss = evaluate(trainer.model, validation_tokens, trainer.config.batch_size, progress=True)
    say(f"Loss over the whole validation text: {loss:.4f} (the best weights, of step {step})")
    return 0
