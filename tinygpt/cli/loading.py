"""The model of a command: its options, the formats in which its weights are stored and multiplied, and loading it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends
from ..errors import CheckpointError, UsageError
from .needs import Need, require_for_model

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..tokenizers import Tokenizer


def add_model_options(parser: Any) -> None:
    """Options for the model, its format and the device."""
    group = parser.add_argument_group("the model")
    words = (
        "a training run, a GPT-2 directory of the Hugging Face format, a LoRA adapter of PEFT, nanoGPT's ckpt.pt, or a "
        "name such as gpt2"
    )
    group.add_argument("--model", required=True, metavar="FOLDER_OR_NAME", help=words)
    group.add_argument("--checkpoint", choices=("best", "latest"), help="of a training run (default: best)")
    words = "branch, tag or commit of a model that is given by its name (default: main)"
    group.add_argument("--revision", default="main", metavar="REV", help=words)
    add_format_options(group)
    group.add_argument("--backend", choices=backends.NAMES, default="numpy", help="CPU or GPU (default: numpy)")


def add_format_options(group: Any) -> None:
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights (default: float32)"
    )
    words = "store the weights in 8 or 4 bits: less memory, faster; 4 bits cost some quality"
    group.add_argument("--quantize", choices=("int8", "int4"), help=words)
    words = (
        "int8: with --quantize, round activations too, for speed (default: int8 with --quantize on a CPU, where no "
        "loss of quality was measured, else float32)"
    )
    group.add_argument("--activations", choices=("int8", "float32"), help=words)


def formats_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `interop.load` that the options ask for."""
    activations = options.activations
    if activations is None and options.quantize and options.backend == "numpy":
        activations = "int8"
    activations = None if activations == "float32" else activations
    return {"dtype": options.dtype, "quantize": options.quantize, "activations": activations}


def load(options: argparse.Namespace, *needs: Need) -> tuple[GPT, Tokenizer, Path]:
    """The model, its tokenizer and their folder. needs: of the command besides (`needs.py`). Raises UsageError."""
    from .. import interop
    from ..exchange import read_whole
    from ..interop.config import CONFIG
    from ..interop.loading import RUN, is_run
    from ..interop.peft import is_adapter

    require_for_model(options, *needs)
    backends.use_backend(options.backend)
    folder = interop.find_model(options.model, options.revision)
    run, directory = read_whole(folder, lambda place: (is_run(place), (place / CONFIG).exists() or is_adapter(place)))
    if not run and not directory and folder.is_dir():
        raise CheckpointError(
            f"there is no model in {folder}: neither the {RUN} of a training run, the {CONFIG} of a GPT-2 directory "
            "nor an adapter"
        )
    if options.checkpoint is not None and not run:
        raise UsageError(f"--checkpoint applies to training runs, but {folder} holds one model: leave it out")
    model, tokenizer = interop.load(folder, checkpoint=options.checkpoint or "best", **formats_of(options))
    return model, tokenizer, folder
