"""The settings of a run: from a command line or, with `--resume`, from the checkpoint of the run itself.

    settings = choose_settings(options)
    with settings.folder:                                     # unlocks it at the end and removes a new run that failed
        ...

`--resume` takes all settings from the checkpoint. Some may be changed (`CHANGEABLE`): the length and the monitoring of
the run (--steps, --dtype, --eval-every, ...) and the size of its steps (--lr, --decay-steps, --grad-clip, ...), which
is printed and recorded in the metrics. --backend may change too. Any other option must have the value in the
checkpoint. More steps do not stretch the learning rate's decay: it stays at min_lr. A resumed run is bit-identical to
an uninterrupted one only with the same backend, dtype, kernels and library versions, because these may round
differently.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ... import backends, tokenizers
from ...checkpoint import Checkpoint, CheckpointFolder, require_same
from ...errors import Need, UsageError
from ...files import user_path
from ...gpt import GPTConfig
from ...interop.config import GENERATION
from ...memory import require_memory
from ...nn.lora import LoRA, lora_of
from ...random import Generator
from ...tokenizers import hf_tokenizers
from ..adapters import add_lora_options, lora_of_options
from ..epochs import add_epoch_options
from ..final_evaluation import WHOLE, add_final_options, check_final
from ..pretrained import Start, start_as_asked
from ..storage.folder import RunFolder
from ..storage.state import check_state, training_config
from ..text.corpus import TextOptions, add_text_options, given_text
from .config import CHANGEABLE, TrainingConfig, new_settings, resumed_settings
from .options import add_field_options, given_options
from .packages import require_packages
from .presets import PRESETS

TOKENIZERS = ("character", "byte", "word", "bpe")
# Default sizes of vocabularies learned from the training part. bpe: about three characters of Shakespeare's plays
# per token; word: 93 % of the tokens of their validation part are known.
VOCAB_SIZES = {"bpe": 2048, "word": 8192}
MODEL_HELP = {
    "block_size": "the longest sequence, in tokens",
    "n_layer": "number of transformer blocks",
    "n_head": "attention heads per block",
    "n_embd": "embedding channels; a multiple of n_head",
    "dropout": "fraction of activations set to zero in training",
    "bias": "use biases in the linear layers and in LayerNorm",
    "layer_norm_epsilon": "added to the variance in LayerNorm",
}


@dataclass(frozen=True)
class Settings:
    """The settings of a run. model: the values of GPTConfig except vocab_size, which depends on the text.

    folder: a context manager that unlocks the folder and cleans up.
    """

    folder: RunFolder
    backend: str
    model: dict[str, Any]
    training: TrainingConfig
    checkpoint: Checkpoint | None  # to resume from
    data: tuple[str, ...] | None
    tokenizer: str | None
    vocab_size: int | None = None
    overwrite: bool = False
    start: Start | None = None  # the model to start from
    text: TextOptions = field(default_factory=TextOptions)
    given_text: Mapping[str, Any] = field(default_factory=dict)  # the options of the text that were given
    cache: bool = True  # read the tokens from the cache, and add them to it (`text/token_cache.py`)

    @property
    def resume(self) -> bool:
        return self.checkpoint is not None

    @property
    def has_adapter(self) -> bool:
        """Whether the run trains a LoRA adapter, and not the whole model."""
        if self.checkpoint is not None:
            return self.checkpoint.state.get("lora") is not None
        return self.start is not None and lora_of(self.start.model) is not None

    @property
    def packed_format(self) -> str | None:
        """The format of the base that an adapter is trained on; None if it is not packed."""
        if self.checkpoint is not None:
            facts: Any = self.checkpoint.state.get("packed_base")
            return None if facts is None else str(facts["format"])
        return None if self.start is None else self.start.model.packed

    @property
    def exports_model(self) -> bool:
        """Whether the run started from a model, and exports one that other programs can load (`storage/export.py`)."""
        return self.start is not None or (self.resume and (self.folder.path / GENERATION).exists())


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add all options of a training run. out: the default folder, where `{preset}` stands for the preset's name."""
    group = parser.add_argument_group("the run")
    presets = "; ".join(f"{name}: {preset.description}" for name, preset in PRESETS.items())
    group.add_argument("--backend", choices=backends.NAMES, help="CPU or GPU (default: numpy)")
    group.add_argument("--preset", choices=tuple(PRESETS), help=f"{presets} (default: tiny; baby on a GPU)")
    add_text_options(group)
    words = f"the kind of token: {', '.join(TOKENIZERS)}, or a folder with a tokenizer (default: character)"
    group.add_argument("--tokenizer", metavar="KIND", help=words)
    sizes = ", ".join(f"{size} for {kind}" for kind, size in VOCAB_SIZES.items())
    words = f"vocabulary size of --tokenizer bpe or word, which are trained on the training part (default: {sizes})"
    group.add_argument("--vocab-size", dest="tokenizer_size", type=int, metavar="N", help=words)
    group.add_argument("--out", metavar="FOLDER", help=f"folder for all files of the run (default: {out})")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue from the latest checkpoint in --out")
    either.add_argument("--overwrite", action="store_true", help="replace the run in --out with a new one")
    parser.set_defaults(default_out=out)
    add_epoch_options(parser)
    add_final_options(parser)
    add_field_options(parser, TrainingConfig, "training", {name: preset.training for name, preset in PRESETS.items()})
    models = {name: preset.model for name, preset in PRESETS.items()}
    add_field_options(parser, GPTConfig, "the model", models, MODEL_HELP, skip=("vocab_size",))


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """Options for a run that starts from a model."""
    group = parser.add_argument_group("start from a model, instead of from random weights")
    words = (
        "a training run, a GPT-2 directory, nanoGPT's ckpt.pt, or a name such as gpt2: weights, tokenizer and "
        "generation settings come from there; --block-size may be shorter, and --lr is by default a tenth of the "
        "preset's"
    )
    group.add_argument("--init-from", metavar="MODEL", help=words)
    words = "branch, tag or commit of a model that is given by its name (default: main)"
    group.add_argument("--revision", metavar="REV", help=words)
    words = "add a token to its vocabulary, with the mean of the other embeddings (may be given several times)"
    group.add_argument("--add-token", action="append", metavar="TEXT", help=words)
    add_lora_options(parser)


def choose_settings(options: argparse.Namespace, *needs: Need) -> Settings:
    """The settings of a new run or, with --resume, of the run in the folder, which is then locked. Writes nothing else.

    needs: checks of the libraries that the command uses besides, so that all that are missing are named at once.
    Raises UsageError for invalid settings, and for a folder that already holds a run or other files in its way;
    CheckpointError if there is nothing to resume or the options contradict the checkpoint.
    """
    check_final(getattr(options, "final_eval", WHOLE))
    name = _preset(options)
    folder = RunFolder(run_folder(options))
    if not options.resume:
        return _new(options, folder, name, *needs)
    try:
        return _resumed(options, folder, *needs)
    except BaseException:
        folder.release()
        raise


def run_folder(options: argparse.Namespace) -> str:
    """The folder of the run, as the user names it."""
    return str(options.out or options.default_out.format(preset=_preset(options)))


def _preset(options: argparse.Namespace) -> str:
    return options.preset or ("baby" if options.backend == "cupy" else "tiny")


def _new(options: argparse.Namespace, folder: RunFolder, name: str, *needs: Need) -> Settings:
    preset, given, start = PRESETS[name], given_options(options, TrainingConfig), None
    lora = lora_of_options(options)
    data, text = given_text(options)
    if getattr(options, "init_from", None) is not None:
        dtype = given.get("dtype", preset.training.get("dtype", TrainingConfig.dtype))
        require_packages(options.backend, dtype, data, *needs, model=options.init_from, revision=options.revision)
        start = _start(options, lora, given.get("seed", TrainingConfig.seed))
        model = {key: value for key, value in start.model.config.to_dict().items() if key != "vocab_size"}
        lr = TrainingConfig.from_dict(new_settings(preset.training, given)).lr
        given = {"lr": lr / 10 if lora is None else lr} | given
        folder.exports_model = True
    elif getattr(options, "revision", None) is not None:
        raise UsageError("--revision selects a version of the model in --init-from: give both, or neither")
    elif lora is not None:
        raise UsageError("--lora-rank trains an adapter of the model in --init-from: give both, or neither")
    elif getattr(options, "add_token", None):
        raise UsageError("--add-token adds to the vocabulary of the model in --init-from: give both, or neither")
    else:
        model = preset.model | given_options(options, GPTConfig)
    config = TrainingConfig.from_dict(new_settings(preset.training, given))
    settings = Settings(
        folder, options.backend or "numpy", model, config, None, data, options.tokenizer,
        options.tokenizer_size, options.overwrite, start, TextOptions(**text), text, not options.no_cache,
    )  # fmt: skip
    check_settings(settings, *needs)
    folder.require_free(options.overwrite)
    return settings


def _start(options: argparse.Namespace, lora: LoRA | None, seed: int) -> Start:
    given = given_options(options, GPTConfig)
    fixed = [f"--{name.replace('_', '-')}" for name in given if name not in ("block_size", "dropout")]
    others = {"--tokenizer": options.tokenizer, "--vocab-size": options.tokenizer_size}
    fixed += [name for name, value in others.items() if value is not None]
    if fixed:
        raise UsageError(f"with --init-from the model is that of {options.init_from}: leave out {fixed[0]}")
    return start_as_asked(options, options.init_from, lora, seed)


def _resumed(options: argparse.Namespace, folder: RunFolder, *needs: Need) -> Settings:
    if getattr(options, "init_from", None) is not None or getattr(options, "add_token", None):
        raise UsageError("--resume continues from the run's own checkpoint: leave out --init-from and --add-token")
    if getattr(options, "revision", None) is not None:
        raise UsageError("--resume continues from the run's own checkpoint: leave out --revision")
    if lora_of_options(options) is not None:
        raise UsageError("--resume continues with the run's own LoRA adapter: leave out --lora-rank and its settings")
    if folder.path.is_dir():
        folder.lock()  # so that no other process resumes the same run
    checkpoint = CheckpointFolder(folder).load("latest")
    state, where = checkpoint.state, f"the checkpoint of step {checkpoint.step} in {folder}"
    check_state(checkpoint, where)
    preset = PRESETS[options.preset] if options.preset else None
    given = given_options(options, TrainingConfig)
    require_same(where, state["model_config"], (preset.model if preset else {}) | given_options(options, GPTConfig))
    stored = dataclasses.asdict(training_config(state, where))  # with defaults for settings that are newer than the run
    require_same(where, stored, (preset.training if preset else {}) | given, CHANGEABLE)
    config = TrainingConfig.from_dict(resumed_settings(stored, given))
    model = {key: value for key, value in state["model_config"].items() if key != "vocab_size"}
    if config.steps < checkpoint.step:
        raise UsageError(
            f"the run in {folder} is already at step {checkpoint.step}: steps must be at least that, not {config.steps}"
        )
    backend = options.backend or state.get("backend", "numpy")
    data, text = given_text(options)
    settings = Settings(
        folder, backend, model, config, checkpoint, data, options.tokenizer, options.tokenizer_size, given_text=text
    )
    check_settings(settings, *needs)
    return settings


def check_settings(settings: Settings, *needs: Need) -> None:
    """Raise UsageError for mistakes that can be found before the text is read. needs: as for `choose_settings`."""
    config = settings.training
    text, tokenizer = settings.data, partial(require_tokenizer, settings.tokenizer)
    if settings.resume:
        text, tokenizer = (), partial(tokenizers.require_library, settings.folder.path)
    require_packages(settings.backend, config.dtype, text, tokenizer, *needs)
    Generator(config.seed)
    if settings.tokenizer not in (None, *TOKENIZERS) and not settings.resume:
        _check_tokenizer(settings.tokenizer)
    if settings.vocab_size is not None and settings.tokenizer not in VOCAB_SIZES:
        raise UsageError("--vocab-size is the vocabulary size of --tokenizer bpe or word: give both, or neither")
    vocab_size = max(1, settings.vocab_size or 1)
    model = GPTConfig(vocab_size=vocab_size, **settings.model)
    require_memory(
        model, config.batch_size, settings.backend, frozen=settings.has_adapter, packed=settings.packed_format,
        recompute=config.recompute,
    )  # fmt: skip


def require_tokenizer(given: str | None) -> None:
    """Raise MissingExtraError if the tokenizer that --tokenizer gives needs a library that is not installed."""
    if given == "bpe":
        hf_tokenizers.tokenizers()
    elif given is not None and given not in TOKENIZERS:
        tokenizers.require_library(user_path(given))


def _check_tokenizer(name: str) -> None:
    """Raise UsageError unless `name` is a folder that a tokenizer can be loaded from."""
    if not user_path(name).is_dir():
        raise UsageError(
            f"there is no tokenizer {name!r}: give {', '.join(TOKENIZERS)} or a folder that holds a tokenizer, such as "
            "a run's"
        )
    tokenizers.load(user_path(name))
