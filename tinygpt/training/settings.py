"""The settings of a run: from a command line or, with `--resume`, from the checkpoint of the run itself.

    settings = choose_settings(options)
    with settings.folder:                                     # given back at the end; a run that failed leaves nothing
        ...

`--resume` takes everything from the checkpoint. Options that only say how long a run goes on and how it is watched
(`CHANGEABLE`: --steps, --dtype, --eval-every, ...) may be set anew, so may --backend, and so may what decides how far a
step goes (--lr, --decay-steps, --grad-clip, ...: the run says so, and its metrics keep it); any other must be what it
was, or is refused. More steps do not stretch the learning rate's decay: it stays at min_lr. "Bit for bit" holds for the
same backend, dtype, kernels and versions of the libraries: they may round differently from one another.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from .. import backends
from ..backends.precision import activation_dtype
from ..checkpoint import Checkpoint, CheckpointFolder, require_same
from ..data import shakespeare
from ..errors import UsageError, require_together
from ..gpt import GPTConfig
from ..memory import require_memory
from ..random import Generator
from ..tokenizers import hf_tokenizers
from ..tokenizers.bpe_files import TOKENIZER
from .config import CHANGEABLE, PRESETS, TrainingConfig, resumed_settings
from .folder import RunFolder
from .options import add_options, given_options
from .outcome import TrainState
from .picture import require_matplotlib
from .state import check_state

TOKENIZERS = ("character", "byte", "bpe")
VOCAB_SIZE = 2048  # of --tokenizer bpe: Shakespeare's plays in a third of the tokens that they have characters
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
    config = settings.training
    bpe = settings.tokenizer == "bpe" or (settings.resume and (settings.folder.path / TOKENIZER).exists())
    require_together(
        lambda: backends.get(settings.backend),
        lambda: activation_dtype(config.dtype, settings.backend),
        *([hf_tokenizers.tokenizers] if bpe else []),
        wanted=[*([shakespeare] if settings.data is None and not settings.resume else []), require_matplotlib],
    )
    Generator(config.seed)
    if settings.vocab_size is not None and settings.tokenizer != "bpe":
        raise UsageError("--vocab-size is the number of tokens of --tokenizer bpe: give both, or neither")
    vocab_size = max(1, settings.vocab_size or 1)
    require_memory(GPTConfig(vocab_size=vocab_size, **settings.model), config.batch_size, settings.backend)
