"""From a GPT-2 directory, or the folder of a training run, to a model.

The order: the small files are read and checked, then the headers of the weights against them, and only then is memory
taken: for the model, whose parameters are made without initial weights and filled straight from the file. So a model
takes no more memory while it is loaded than afterwards, and nothing that a file merely claims is believed. A model that
is packed on the way takes one matrix more: each is read, packed and let go before the next.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends, nn, tokenizers
from ..checkpoint import CheckpointFolder, model_config, read_checkpoint
from ..checks import number
from ..errors import CheckpointError, UsageError, require_together
from ..exchange import read_whole
from ..gpt import GPT, GPTConfig
from ..safetensors_io import SafetensorsFile
from ..tokenizers import Tokenizer, hf_tokenizers
from .config import CONFIG, read_config, read_generation
from .hub import find_here, find_model
from .saving import token_ids
from .weights import HEAD, Weights, open_weights

Make = Callable[[GPTConfig, Weights], GPT]

RUN = "checkpoints.json"  # what makes a folder that of a training run


def from_pretrained(
    folder_or_name: str | os.PathLike[str],
    *,
    dtype: Any = "float32",
    quantize: str | None = None,
    dropout: float | None = None,
    seed: int = 0,
    revision: str = "main",
    checkpoint: str = "best",
    model_class: type[GPT] = GPT,
) -> GPT:
    """What `GPT.from_pretrained` does; see there. model_class: GPT or a subclass."""
    held, packed = _formats(dtype, quantize)
    if not issubclass(model_class, GPT):
        raise UsageError(f"from_pretrained: a GPT-2 directory makes a GPT, and {model_class.__name__} is no kind of it")
    if dropout is not None:
        dropout = number("from_pretrained", "dropout", dropout, at_least=0, below=1)

    def make(config: GPTConfig, weights: Weights) -> GPT:
        return _filled(model_class, config, seed, held, weights, packed)

    def read(folder: Path) -> GPT:
        if is_run(folder):
            return _load_run(folder, checkpoint, make, dropout)
        return _load_directory(folder, make, dropout)

    with backends.use_backend("numpy"):
        model = read_whole(find_model(folder_or_name, revision), read)
    model.eval()
    model.to(backends.current())
    return model


def load(folder_or_name: str | os.PathLike[str], *, revision: str = "main", **options: Any) -> tuple[GPT, Tokenizer]:
    """`from_pretrained`, which takes the options, with the tokenizer of the same folder.

    Both are of one moment, also where another model takes their place meanwhile. Raises what `from_pretrained` raises,
    and CheckpointError where the tokenizer belongs to another model.
    """
    require_libraries(folder_or_name, revision)
    folder = find_model(folder_or_name, revision)

    def read(place: Path) -> tuple[GPT, Tokenizer]:
        model, tokenizer = from_pretrained(place, **options), tokenizers.load(place)
        tokens, ids = tokenizer.vocab_size, model.config.vocab_size
        if tokenizer.ids_of_texts > ids or (is_run(place) and tokens != ids):
            raise CheckpointError(
                f"the tokenizer in {folder} has {tokens} tokens and the model {ids}: they do not belong together"
            )
        return model, tokenizer

    return read_whole(folder, read)


def require_libraries(
    folder_or_name: str | os.PathLike[str], revision: str = "main", backend: str | None = None
) -> None:
    """Raise one MissingExtraError for all libraries that this model, its tokenizer and the backend need and lack.

    What has to be fetched is taken to have GPT-2's tokenizer where something else is missing as well.
    """
    here = list[Path | None]()
    require_together(
        *([lambda: backends.get(backend)] if backend is not None else []),
        lambda: here.append(find_here(folder_or_name, revision)),
        lambda: tokenizers.require_library(here[0]) if here and here[0] else None,
        wanted=[lambda: None if here and here[0] else hf_tokenizers.tokenizers()],
    )


def is_run(folder: Path) -> bool:
    """Whether `folder` is that of a training run; one that has a config.json too is a GPT-2 directory."""
    return (folder / RUN).exists() and not (folder / CONFIG).exists()


def _formats(dtype: Any, quantize: Any) -> tuple[str, str | None]:
    """`(dtype of the parameters, what they are packed into)`."""
    names = {np.float32: "float32", np.float64: "float64"}
    dtype = dtype if isinstance(dtype, str) else names.get(dtype, dtype)
    if dtype not in ("float32", "float64", "bfloat16"):
        raise UsageError(f"from_pretrained: dtype must be 'float32', 'float64' or 'bfloat16', not {dtype!r}")
    if quantize not in (None, "int8"):
        raise UsageError(f"from_pretrained: quantize must be None or 'int8', not {quantize!r}")
    if quantize is not None and dtype != "float32":
        raise UsageError(
            f"from_pretrained: dtype={dtype!r} and quantize={quantize!r} contradict each other: leave one out"
        )
    return ("float32", "bfloat16") if dtype == "bfloat16" else (dtype, quantize)


def _load_directory(folder: Path, make: Make, dropout: float | None) -> GPT:
    config, marked = read_config(folder, dropout)
    generation = read_generation(folder, config.vocab_size)
    with open_weights(folder) as weights:
        weights.check(config)
        if weights.take_other_head():
            warnings.warn(
                f"{folder} has a {HEAD} that differs from the token embedding, though its config.json ties them: the "
                "model is loaded with a head of its own, as transformers does it (tie_word_embeddings=False)",
                stacklevel=8,
            )
            config = dataclasses.replace(config, tie_word_embeddings=False)
        if marked and weights.drop_zero_biases():  # else it was trained on elsewhere, and has them now
            config = dataclasses.replace(config, bias=False)
        model = make(config, weights)
    model.generation_config = generation
    return model


def _load_run(folder: Path, which: str, make: Make, dropout: float | None) -> GPT:
    """Of the checkpoint only the weights are read: the optimizer's state is twice as large."""
    where = f"the {which} checkpoint in {folder}"

    def read(path: Path) -> GPT:
        state = read_checkpoint(path, arrays_too=False).state
        try:
            with SafetensorsFile(path) as file:
                weights = Weights.of_run(path, file)
                config = model_config(state, weights.count, where)
                if dropout is not None:
                    config = dataclasses.replace(config, dropout=dropout)
                return make(config, weights)
        except (UsageError, TypeError, KeyError) as error:
            raise CheckpointError(f"{where} makes no model: {error}") from error

    model = CheckpointFolder(folder).load(which, read)
    model.generation_config = token_ids(tokenizers.load(folder))
    return model


def _filled(
    model_class: type[GPT], config: GPTConfig, seed: int, dtype: str, weights: Weights, packed: str | None
) -> GPT:
    """A model with these weights. Where it is packed, its matrices never all exist in float32."""
    # A class of somebody's own may do anything with its weights while it is made, so they must be there.
    absent = packed is not None and model_class.__init__ is GPT.__init__
    with nn.uninitialized(without_matrices=absent):
        model = model_class(config, seed, dtype)
    weights.check_model(model)
    weights.fill(model, packed if absent else None)
    return model if packed is None or absent else model.pack(packed)
