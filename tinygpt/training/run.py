"""From a command line to a run, and back from its folder: what `tinygpt train` and the example share.

    settings = choose_settings(options)                       # presets, options, or the checkpoint's with --resume
    with settings.folder:                                     # given back at the end; a run that failed leaves nothing
        text = prepare_text(settings)                         # a tokenizer and memory-mapped tokens (`text.py`)
    model, tokenizer, checkpoint = load_model(folder)         # of a run that has saved a checkpoint

A run's folder holds `tinygpt-run.json` (what in it is the run's, see `folder.py`), `text.json` (which text it was), the
tokenizer (`tokenizer.tinygpt.json`, or `tokenizer.json` and its kin, see `tokenizers/bpe_files.py`), `tokens.npy`, the
checkpoints (see `tinygpt/checkpoint.py`), `metrics.jsonl` and `loss_curve.png`.

`--resume` takes everything from the checkpoint. Options that only say how long a run goes on and how it is watched
(`CHANGEABLE`: --steps, --dtype, --eval-every, ...) may be set anew, so may --backend, and so may what decides how far a
step goes (--lr, --decay-steps, --grad-clip, ...: the run says so, and its metrics keep it); any other must be what it
was, or is refused. More steps do not stretch the learning rate's decay: it stays at min_lr. "Bit for bit" holds for the
same backend, dtype, kernels and versions of the libraries: they may round differently from one another.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import backends, kernel, nn, tokenizers
from ..backends.precision import activation_dtype
from ..checkpoint import Checkpoint, CheckpointFolder, model_config, require_same
from ..errors import CheckpointError, UsageError
from ..exchange import read_whole
from ..gpt import GPT, GPTConfig
from ..memory import require_memory
from ..random import Generator
from ..tokenizers import Tokenizer
from .config import CHANGEABLE, PRESETS, TrainingConfig, resumed_settings
from .folder import RunFolder
from .loop import Trainer
from .options import add_options, given_options
from .outcome import TrainState
from .state import check_state
from .text import TOKENIZERS, VOCAB_SIZE, Text

MODEL_HELP = {
    "block_size": "the longest sequence, in tokens",
    "n_layer": "blocks, one after the other",
    "n_head": "heads of attention in each",
    "n_embd": "channels; a multiple of n_head",
    "dropout": "share of the activations set to zero in training",
    "bias": "biases in the linear layers and in LayerNorm",
    "layer_norm_epsilon": "added to the variance in LayerNorm",
}


@dataclass(frozen=True)
class Settings:
    """What a run is to be. model: GPTConfig's values but for vocab_size, which the text decides.

    folder: a context, which gives the folder back for others and clears up.
    """

    folder: RunFolder
    backend: str
    model: dict[str, Any]
    training: TrainingConfig
    checkpoint: Checkpoint | None  # what to go on from
    data: str | None
    tokenizer: str | None
    vocab_size: int | None = None
    overwrite: bool = False

    @property
    def resume(self) -> bool:
        return self.checkpoint is not None


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """All options of a training run; `out` is the default folder, in which `{preset}` stands for the preset."""
    group = parser.add_argument_group("the run")
    presets = "; ".join(f"{name}: {preset.description}" for name, preset in PRESETS.items())
    group.add_argument("--backend", choices=backends.NAMES, help="CPU or GPU (default: numpy)")
    group.add_argument("--preset", choices=tuple(PRESETS), help=f"{presets} (default: tiny; baby on a GPU)")
    group.add_argument(
        "--data", metavar="FILE", help="a UTF-8 text to train on; - is the standard input (default: Shakespeare)"
    )
    group.add_argument("--tokenizer", choices=TOKENIZERS, help="what a token is (default: character)")
    words = f"tokens of --tokenizer bpe, which is trained on the training part (default: {VOCAB_SIZE})"
    group.add_argument("--vocab-size", dest="bpe_vocab_size", type=int, metavar="N", help=words)
    group.add_argument("--out", metavar="FOLDER", help=f"where everything is kept (default: {out})")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in --out")
    either.add_argument("--overwrite", action="store_true", help="replace the run in --out by a new one")
    parser.set_defaults(default_out=out)
    add_options(parser, TrainingConfig, "training", {name: preset.training for name, preset in PRESETS.items()})
    models = {name: preset.model for name, preset in PRESETS.items()}
    add_options(parser, GPTConfig, "the model", models, MODEL_HELP, skip=("vocab_size",))


def choose_settings(options: argparse.Namespace) -> Settings:
    """The settings of a new run or, with --resume, of the one in the folder, which is then locked. Writes nothing else.

    Raises UsageError for settings without sense and for a folder that holds a run already or other files in its way,
    CheckpointError when there is nothing to resume or the options contradict it.
    """
    name = options.preset or ("baby" if options.backend == "cupy" else "tiny")
    folder = RunFolder(options.out or options.default_out.format(preset=name))
    if not options.resume:
        return _new(options, folder, name)
    try:
        return _resumed(options, folder)
    except BaseException:
        folder.release()
        raise


def _new(options: argparse.Namespace, folder: RunFolder, name: str) -> Settings:
    preset = PRESETS[name]
    model = preset.model | given_options(options, GPTConfig)
    config = TrainingConfig.from_dict(preset.training | given_options(options, TrainingConfig))
    settings = Settings(
        folder, options.backend or "numpy", model, config, None, options.data, options.tokenizer,
        options.bpe_vocab_size, options.overwrite,
    )  # fmt: skip
    _check(settings)
    folder.require_free(options.overwrite)
    return settings


def _resumed(options: argparse.Namespace, folder: RunFolder) -> Settings:
    if folder.path.is_dir():
        folder.lock()  # another process must not train on from here meanwhile
    checkpoint = CheckpointFolder(folder).load("latest")
    state, where = checkpoint.state, f"the checkpoint of step {checkpoint.step} in {folder}"
    check_state(checkpoint, where, TrainState)
    preset = PRESETS[options.preset] if options.preset else None
    given = given_options(options, TrainingConfig)
    require_same(where, state["model_config"], (preset.model if preset else {}) | given_options(options, GPTConfig))
    require_same(where, state["training_config"], (preset.training if preset else {}) | given, CHANGEABLE)
    config = TrainingConfig.from_dict(resumed_settings(state["training_config"], given))
    model = {key: value for key, value in state["model_config"].items() if key != "vocab_size"}
    if config.steps < checkpoint.step:
        raise UsageError(
            f"the run in {folder} is at step {checkpoint.step} already: steps must be at least that, not {config.steps}"
        )
    backend = options.backend or state.get("backend", "numpy")
    settings = Settings(
        folder, backend, model, config, checkpoint, options.data, options.tokenizer, options.bpe_vocab_size
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    """Raise UsageError for what can be refused before the text is read."""
    backends.get(settings.backend)
    config = settings.training
    activation_dtype(config.dtype, settings.backend)
    Generator(config.seed)
    if settings.vocab_size is not None and settings.tokenizer != "bpe":
        raise UsageError("--vocab-size is the number of tokens of --tokenizer bpe: give both, or neither")
    vocab_size = max(1, settings.vocab_size or 1)
    require_memory(GPTConfig(vocab_size=vocab_size, **settings.model), config.batch_size, settings.backend)


def rehearse(trainer: Trainer) -> None:
    """One forward and backward pass of the first batch, which changes nothing: what a step needs is there.

    For a new run that is to replace an older one, before it does.
    """
    model, state = trainer.model, trainer.model.generator.state_dict()
    with model.compute_in(trainer.config.dtype):
        model.loss(*trainer.batches.batch(0)).backward()
    trainer.optimizer.zero_grad()
    model.generator.load_state_dict(state)


def load_model(folder: str | Path, which: str = "best") -> tuple[GPT, Tokenizer, Checkpoint]:
    """The model of a run's "best" or "latest" checkpoint, ready to use, with its tokenizer. Raises CheckpointError."""
    return read_whole(Path(folder), lambda place: _load_model(place, which))


def _load_model(folder: Path, which: str) -> tuple[GPT, Tokenizer, Checkpoint]:
    checkpoint = CheckpointFolder(folder).load(which)
    tokenizer = tokenizers.load(folder)
    where = f"the {which} checkpoint in {folder}"
    config = model_config(checkpoint.state, sum(array.size for array in checkpoint.model.values()), where)
    try:
        with nn.uninitialized():
            model = GPT(config, dtype=checkpoint.model["wte.weight"].dtype.name)
        model.load_state_dict(checkpoint.model)
    except (UsageError, TypeError, KeyError) as error:
        raise CheckpointError(f"{where} makes no model: {error}") from error
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens and the model {config.vocab_size}: "
            "they do not belong together"
        )
    model.eval()
    return model, tokenizer, checkpoint


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
