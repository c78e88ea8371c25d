"""From a command line to a run, and back from its folder: what `tinygpt train` and the example share.

    settings = choose_settings(options)                       # presets, options, or the checkpoint's with --resume
    text = prepare_text(settings)                             # a tokenizer and memory-mapped tokens
    model, tokenizer, checkpoint = load_model(folder)         # of a run that has saved a checkpoint

A run's folder holds `text.json` (which text it was), the tokenizer (`tokenizer.tinygpt.json`, or `tokenizer.json` and
its kin, see `tokenizers/bpe_files.py`), `tokens.npy`, the checkpoints (see `checkpoint.py`), `metrics.jsonl` and
`loss_curve.png`.

`--resume` takes everything from the checkpoint. Options that only say how long a run goes on and how it is watched
(`CHANGEABLE`: --steps, --dtype, --eval-every, ...) may be set anew, so may --backend, and so may what decides how far a
step goes (--lr, --decay-steps, --grad-clip, ...: the run says so, and its metrics keep it); any other must be what it
was, or is refused. More steps do not stretch the learning rate's decay: it stays at min_lr. "Bit for bit" holds for the
same backend, dtype, kernels and versions of the libraries: they may round differently from one another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends, kernel, nn, tokenizers
from ..backends.precision import activation_dtype
from ..data import Corpus, RandomBatches, open_tokens, read_text, shakespeare, split, write_tokens
from ..data.tokens import explain_os_errors, folder_made
from ..errors import CheckpointError, UsageError
from ..files import atomic_write
from ..gpt import GPT, GPTConfig
from ..tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from ..tokenizers.bpe_files import FILES as TOKENIZER_FILES
from ..tokenizers.pieces import recut
from .checkpoint import Checkpoint, CheckpointFolder, require_same
from .config import CHANGEABLE, PRESETS, TrainingConfig, resumed_settings
from .loop import METRICS, PICTURE
from .options import add_options, given_options

TEXT, TOKENS = "text.json", "tokens.npy"
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
    """What a run is to be. model: GPTConfig's values but for vocab_size, which the text decides."""

    folder: Path
    backend: str
    model: dict[str, Any]
    training: TrainingConfig
    checkpoint: Checkpoint | None  # what to go on from
    data: str | None
    tokenizer: str | None
    vocab_size: int | None = None

    @property
    def resume(self) -> bool:
        return self.checkpoint is not None


@dataclass(frozen=True)
class Text:
    """The text of a run: how it is read (tokenizer), its ids (N,), and a sentence that says which text it is."""

    tokenizer: Tokenizer
    tokens: np.ndarray
    description: str


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """All options of a training run; `out` is the default folder, in which `{preset}` stands for the preset."""
    group = parser.add_argument_group("the run")
    presets = "; ".join(f"{name}: {preset.description}" for name, preset in PRESETS.items())
    group.add_argument("--backend", choices=backends.NAMES, help="CPU or GPU (default: numpy)")
    group.add_argument("--preset", choices=tuple(PRESETS), help=f"{presets} (default: tiny; baby on a GPU)")
    group.add_argument("--data", metavar="FILE", help="a UTF-8 text to train on (default: Shakespeare)")
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
    """The settings of a new run or, with --resume, of the one in the folder. Writes nothing.

    Raises UsageError for settings without sense and for a folder that holds a run already, CheckpointError when
    there is nothing to resume or the options contradict it.
    """
    name = options.preset or ("baby" if options.backend == "cupy" else "tiny")
    folder = Path(options.out or options.default_out.format(preset=name))
    preset = PRESETS[name] if options.preset or not options.resume else None
    given = given_options(options, TrainingConfig)
    model = (dict(preset.model) if preset else {}) | given_options(options, GPTConfig)
    training = (dict(preset.training) if preset else {}) | given
    backend = options.backend or "numpy"
    checkpoint = None
    if options.resume:
        checkpoint = CheckpointFolder(folder).load("latest")
        state, where = checkpoint.state, f"the checkpoint of step {checkpoint.step} in {folder}"
        require_same(where, state["model_config"], model)
        require_same(where, state["training_config"], training, CHANGEABLE)
        training = resumed_settings(state["training_config"], given)
        model = {key: value for key, value in state["model_config"].items() if key != "vocab_size"}
        backend = options.backend or state["backend"]
    config = TrainingConfig.from_dict(training)
    if checkpoint is not None and config.steps < checkpoint.step:
        raise UsageError(
            f"the run in {folder} is at step {checkpoint.step} already: steps must be at least that, not {config.steps}"
        )
    GPTConfig(vocab_size=1, **model)
    backends.get(backend)
    activation_dtype(config.dtype, backend)
    if options.bpe_vocab_size is not None and options.tokenizer != "bpe":
        raise UsageError("--vocab-size is the number of tokens of --tokenizer bpe: give both, or neither")
    if not options.resume and not options.overwrite and CheckpointFolder(folder).exists():
        raise UsageError(
            f"the folder {folder} holds a run already: go on with it with --resume, keep it and choose another --out, "
            "or replace it with --overwrite"
        )
    return Settings(folder, backend, model, config, checkpoint, options.data, options.tokenizer, options.bpe_vocab_size)


def prepare_text(settings: Settings, check: Callable[[Tokenizer], object] | None = None) -> Text:
    """Tokenizer and tokens of a run, made of the text, or with --resume opened again.

    check: called with the tokenizer before anything is written; what it raises leaves an older run as it was.
    Raises UsageError for a text that can't be read or is empty, CheckpointError when a resumed run is given
    another text or when its files are gone.
    """
    folder = settings.folder
    if settings.resume:
        facts = _read_facts(folder)
        if settings.data is not None and _sha256(Path(settings.data)) != facts["sha256"]:
            raise CheckpointError(
                f"the run in {folder} is of another text than {settings.data}: {facts['description']}"
            )
        if settings.tokenizer not in (None, facts["tokenizer"]):
            raise CheckpointError(f"the run in {folder} has {facts['tokenizer']} tokens, not {settings.tokenizer}")
        if settings.vocab_size is not None and str(settings.vocab_size) != facts["vocab_size"]:
            raise CheckpointError(
                f"the run in {folder} was given --vocab-size {facts['vocab_size']}, not {settings.vocab_size}"
            )
        if check is not None:
            check(tokenizers.load(folder))
    else:
        facts = _make_text(settings, check)
    return Text(tokenizers.load(folder), open_tokens(folder / TOKENS), facts["description"])


def _make_text(settings: Settings, check: Callable[[Tokenizer], object] | None) -> dict[str, str]:
    folder, data, kind = settings.folder, settings.data, settings.tokenizer or "character"
    corpus = shakespeare() if data is None else Corpus(Path(data), Path(data).name, f"the file {data}")
    vocab_size = VOCAB_SIZE if settings.vocab_size is None else settings.vocab_size
    tokenizer: Tokenizer
    if kind == "bpe":
        tokenizer = _bpe(corpus.path, vocab_size, settings.training.validation_fraction)
    else:
        tokenizer = ByteTokenizer() if kind == "byte" else _characters(corpus.path)
    # All that can be refused is refused now: what follows takes an older run away.
    _refuse_short_text(corpus.path, tokenizer, settings)
    if check is not None:
        check(tokenizer)
    _clear(folder)
    write_tokens(corpus.path, tokenizer, folder / TOKENS)
    tokenizer.save(folder)
    facts = {"description": corpus.description, "tokenizer": kind, "sha256": _sha256(corpus.path)}
    if kind == "bpe":
        facts["vocab_size"] = str(vocab_size)  # as asked for; a short text gives fewer
    with explain_os_errors("write", folder / TEXT), atomic_write(folder / TEXT, "w") as file:
        json.dump(facts, file, indent=1, ensure_ascii=False)
    return facts


def _refuse_short_text(path: Path, tokenizer: Tokenizer, settings: Settings) -> None:
    """Raise what the batches of this text would raise."""
    count = sum(len(tokenizer.encode(piece)) for piece in tokenizer.whole_pieces(read_text(path)))
    if count == 0:
        raise UsageError(f"the text {path} is empty: there is nothing to train on")
    stand_in = np.broadcast_to(np.uint16(0), (count,))  # as many tokens as the text has, in no memory
    for part in split(stand_in, settings.training.validation_fraction):
        RandomBatches(part, settings.training.batch_size, settings.model["block_size"])


def _clear(folder: Path) -> None:
    """Make the folder of a new run, or take the run out that it holds."""
    folder_made(folder)
    with explain_os_errors("clear the folder", folder):
        CheckpointFolder(folder).remove()
        if (folder / TEXT).exists():  # else what is here is no run, and such files are not ours
            for name in TOKENIZER_FILES:
                (folder / name).unlink(missing_ok=True)
        for name in (METRICS, PICTURE, TEXT):
            (folder / name).unlink(missing_ok=True)


def _characters(path: Path) -> CharTokenizer:
    pieces = list(dict.fromkeys(character for piece in read_text(path) for character in set(piece)))
    if not pieces:
        raise UsageError(f"the text {path} is empty: there is nothing to train on")
    return CharTokenizer.from_text("".join(pieces))


def _bpe(path: Path, vocab_size: int, validation_fraction: float) -> BPETokenizer:
    """BPE whose merges come from the training part alone: what is common in the validation text must not be known.

    The part is measured in bytes, as there are no tokens yet.
    """
    with explain_os_errors("read", path):
        room = round((1 - validation_fraction) * path.stat().st_size)
    return BPETokenizer.train(recut(_beginning(path, room)), vocab_size)


def _beginning(path: Path, room: int) -> Iterator[str]:
    """The first `room` bytes of a text, without a character that is cut at the end."""
    for piece in read_text(path):
        data = piece.encode("utf-8")
        yield piece if len(data) <= room else data[:room].decode("utf-8", errors="ignore")
        room -= len(data)
        if room <= 0:
            return


def _read_facts(folder: Path) -> dict[str, str]:
    try:
        facts = json.loads((folder / TEXT).read_text(encoding="utf-8"))
        return {key: str(facts[key]) for key in ("description", "tokenizer", "sha256")} | {
            "vocab_size": str(facts.get("vocab_size"))  # BPE alone has one
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / TEXT} is missing or damaged ({error}): start the run anew") from error


def _sha256(path: Path) -> str:
    with explain_os_errors("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(folder: str | Path, which: str = "best") -> tuple[GPT, Tokenizer, Checkpoint]:
    """The model of a run's "best" or "latest" checkpoint, ready to use, with its tokenizer. Raises CheckpointError."""
    folder = Path(folder)
    checkpoint = CheckpointFolder(folder).load(which)
    tokenizer = tokenizers.load(folder)
    try:
        config = GPTConfig.from_dict(checkpoint.state["model_config"])
        with nn.uninitialized():
            model = GPT(config, dtype=checkpoint.model["wte.weight"].dtype.name)
        model.load_state_dict(checkpoint.model)
    except (UsageError, TypeError, KeyError) as error:
        raise CheckpointError(f"the {which} checkpoint in {folder} makes no model: {error}") from error
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
