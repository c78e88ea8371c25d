"""One training run, from a model and a text to the loss of the best weights: shared by `tinygpt train` and the example.

    settings = choose_settings(options)                         # settings/choose.py
    with settings.folder:                                       # storage/folder.py
        text = prepare_text(settings)                           # text/: a tokenizer and memory-mapped tokens
        train_tokens, validation_tokens = tinygpt.data.split(text.tokens, settings.training.validation_fraction)
        model = make_model(settings, text.tokenizer)
        trainer = make_trainer(settings, model, train_tokens, validation_tokens, text.tokenizer)
        print(describe_run(settings, text, model))
        code = train_and_evaluate(trainer, validation_tokens, "the command that resumes after Ctrl-C")

A run's folder holds `tinygpt-run.json` (the list of the run's files, see `storage/folder.py`), `text.json` (which text
it was), `config.toml` (how it was started), the tokenizer (`tokenizer.tinygpt.json`, or `tokenizer.json` and its
companions, see `tokenizers/bpe_files.py`), `tokens.npy`, the checkpoints (see `tinygpt/checkpoint.py`), `metrics.jsonl`
and `loss_curve.png`.
`tinygpt.interop.load` loads the model and the tokenizer from it.
"""

from __future__ import annotations

import numpy as np

from .. import kernel, parallel
from ..backends.precision import is_slower_than_float32
from ..console import say
from ..data.chat_template import write_templates
from ..data.dialogue import end_of_text
from ..errors import CheckpointError, UsageError
from ..gpt import GPT, GPTConfig
from ..interop.config import read_generation
from ..interop.packed_run import packed_base
from ..nn.lora import insert_lora, lora_of
from ..tokenizers import Tokenizer, WordTokenizer
from .adapters import lora_of_checkpoint
from .final_evaluation import WHOLE, report_best
from .loop import Trainer
from .pretrained import start_from
from .settings.choose import Settings
from .text.prepare import Text


def make_model(settings: Settings, tokenizer: Tokenizer) -> GPT:
    """The model of a run: the one that it starts from, or a new one, which a resumed run fills from its checkpoint."""
    if settings.start is not None:
        settings.start.model.to(settings.backend)
        return settings.start.model
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **settings.model)
    if settings.checkpoint is not None:  # a pretrained model may have more embedding rows than there are tokens
        config = GPTConfig.from_dict(settings.checkpoint.state["model_config"])
    packed = _packed_base(settings, config)
    model = GPT(config, seed=settings.training.seed) if packed is None else packed
    if settings.checkpoint is not None:
        lora = lora_of_checkpoint(settings.checkpoint, f"the latest checkpoint in {settings.folder}")
        model = model if lora is None else insert_lora(model, lora)
    if settings.exports_model:
        model.generation_config = read_generation(settings.folder.path, config.vocab_size)
    return model


def _packed_base(settings: Settings, config: GPTConfig) -> GPT | None:
    """The base model of a resumed run whose checkpoint holds only an adapter."""
    where = f"the latest checkpoint in {settings.folder}"
    found = packed_base(settings.checkpoint.state, where) if settings.checkpoint is not None else None
    if found is None:
        return None
    try:
        start = start_from(
            found[0], block_size=config.block_size, dropout=config.dropout, seed=settings.training.seed,
            classifiers=True, packed=found[1],
        )  # fmt: skip
    except UsageError as error:
        raise CheckpointError(f"{where} needs its base, the model {found[0]!r}, but {error}") from error
    return start.model


def make_trainer(
    settings: Settings, model: GPT, train_tokens: np.ndarray, validation_tokens: np.ndarray,
    tokenizer: Tokenizer | None = None,
) -> Trainer:  # fmt: skip
    """The trainer of a run. A resumed run is restored from its checkpoint. A run that will replace an older one first
    tries a step, because its first checkpoint removes the older run. tokenizer: used if the run exports its model."""
    trainer = Trainer(
        model, train_tokens, validation_tokens, settings.training, settings.folder,
        tokenizer=tokenizer if settings.exports_model else None,
    )  # fmt: skip
    if settings.start is not None and tokenizer is not None:
        start, end = settings.start, end_of_text(model, tokenizer)
        write_templates(settings.folder.place, start.template, tokenizer, end, start.chat_template)
    if settings.checkpoint is not None:
        trainer.resume(settings.checkpoint)
    elif settings.folder.replaces:
        rehearse(trainer)
    return trainer


def rehearse(trainer: Trainer) -> None:
    """Run the first batch forward and backward without changing anything, to see that there is enough memory.

    For a new run that will replace an older one.
    """
    model, state = trainer.model, trainer.model.generator.state_dict()
    with model.compute_in(trainer.config.dtype):
        trainer.objective.loss(model, *trainer.batches.batch(0)).backward()
    trainer.optimizer.zero_grad()
    model.generator.load_state_dict(state)


def _processes(rows: int) -> dict[str, str]:
    size = parallel.size()
    return {} if size == 1 else {"With": f"{size} processes, {rows // size} rows of a batch each"}


def _adapter_line(model: GPT) -> dict[str, str]:
    lora = lora_of(model)
    if lora is None:
        return {}
    trained = sum(parameter.size for parameter in model.parameters() if parameter.requires_grad)
    words = f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {', '.join(lora.targets)}"
    return {"LoRA": f"{words}: {trained:,} parameters are trained, the others are frozen"}


def describe_run(settings: Settings, text: Text, model: GPT) -> str:
    """A summary of the run in a few lines, to print before training."""
    config, training = model.config, settings.training
    in_dtype = "" if training.dtype == "float32" else f", activations in {training.dtype}"
    if is_slower_than_float32(training.dtype, settings.backend):
        in_dtype += " (slower than float32 here: this processor, or its kernels, can't multiply such numbers)"
    begin = settings.checkpoint.step if settings.checkpoint is not None else 0
    aside = f"the last {training.validation_fraction:.0%} for validation"
    if text.documents is not None:
        aside = f"{text.documents[1]:,} of {sum(text.documents):,} documents for validation"
    lines = {} if settings.start is None else {"From": f"the model {settings.start.name}"}
    lines |= {
        "Text": f"{text.description}; {len(text.tokens):,} tokens{_unknown(text)}, vocabulary of "
        f"{text.tokenizer.vocab_size}, {aside}",
        "Model": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, block "
        f"{config.block_size}, dropout {config.dropout:g}, {'with' if config.bias else 'no'} biases: "
        f"{model.num_parameters():,} parameters",
        **_adapter_line(model),
        "Run": f"steps {begin} to {training.steps}, each {training.gradient_accumulation} x {training.batch_size} x "
        f"{config.block_size} tokens{in_dtype}; saved in {settings.folder}",
        **_processes(training.batch_size),
        "On": kernel.describe(settings.backend),
    }
    return "\n".join(f"{name + ':':<7}{line}" for name, line in lines.items())


def _unknown(text: Text) -> str:
    """How many tokens stand for words that the tokenizer does not know."""
    if not isinstance(text.tokenizer, WordTokenizer):
        return ""
    chunks = (text.tokens[begin : begin + (1 << 20)] for begin in range(0, len(text.tokens), 1 << 20))
    count = sum(map(text.tokenizer.unknown_count, chunks))
    return f", {count:,} of them unknown words ({count / len(text.tokens):.1%})"


def train_and_evaluate(trainer: Trainer, validation_tokens: np.ndarray, go_on: str, final_eval: str = WHOLE) -> int:
    """Train to the end, then load the best weights and print their loss over the whole validation text.

    go_on: the command that resumes the run, printed if a signal stops it. final_eval: "whole", "none" or a number of
    batches. Returns an exit code: 0, or 128 + the signal that stopped training or evaluation; the run was saved then.
    """
    result = trainer.run()
    if result.signal is not None:
        say(f"Saved at step {result.step}. Resume with:\n    {go_on}")
        return 128 + result.signal
    say(result.summary())
    return report_best(trainer, validation_tokens, final_eval)
