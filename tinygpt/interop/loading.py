"""Load a model from a GPT-2 directory, the folder of a training run or a checkpoint of nanoGPT.

First the small files are read and checked, and then the headers of the weights are checked against them. Only then is
the model allocated, with uninitialized parameters that are read straight from the file. So a file with false sizes is
refused before any memory is allocated for it, and loading takes no more memory than the model itself. Packing needs
memory for one more matrix: each matrix is read, packed and freed before the next.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends, nn, tokenizers
from ..checkpoint import CheckpointFolder, made_of, marked_files, model_config, read_checkpoint
from ..checks import number
from ..errors import CheckpointError, UsageError, require_together
from ..exchange import read_whole
from ..gpt import GPT, GPTConfig
from ..nn.lora import LoRA, insert_lora, lora_of
from ..nn.packed import check_activations, round_activations
from ..ops.packed import PackingError
from ..safetensors_io import SafetensorsFile
from ..tokenizers import Tokenizer, WordPieceTokenizer, hf_tokenizers
from ..typing import DTypeLike
from .config import CONFIG, GENERATION, read_config, read_generation
from .hub import find_here, find_model
from .nanogpt import NanoGPTFile, tokenizer_beside
from .packed_run import on_its_base, packed_base
from .peft import base_of, is_adapter, load_adapter
from .saving import TOKENIZER_FILES, token_ids
from .weights import HEAD, ClassifierFoundError, Weights, open_weights

Make = Callable[..., GPT]  # of a GPTConfig, Weights and, optionally, the LoRA adapter among them
Heads = Callable[[Weights], None] | None

RUN = "checkpoints.json"  # the file by which the folder of a training run is recognised


def from_pretrained(
    folder_or_name: str | os.PathLike[str],
    *,
    dtype: DTypeLike = "float32",
    quantize: str | None = None,
    activations: str | None = None,
    dropout: float | None = None,
    seed: int = 0,
    revision: str = "main",
    checkpoint: str = "best",
    model_class: type[GPT] = GPT,
    heads: Heads = None,
) -> GPT:
    """Implements `GPT.from_pretrained`. model_class: GPT or a subclass.

    heads: for a classifier, which needs no more than `hidden`. It is called with the weights, to read its own head, and
    the heads in the file are left out. The model then has a tied one, whatever the file has.
    """
    parameter_dtype, packed = _formats(dtype, quantize)
    by_default = (parameter_dtype, packed) == ("float32", None)
    here = find_here(folder_or_name, revision) if by_default and activations == "int8" else None
    if here is None or not is_run(here):  # else later: a run on a packed base has the format of that
        check_activations("from_pretrained", packed, activations)
    if not issubclass(model_class, GPT):
        raise UsageError(f"from_pretrained: model_class must be GPT or a subclass of it, not {model_class.__name__}")
    if dropout is not None:
        dropout = number("from_pretrained", "dropout", dropout, at_least=0, below=1)

    def make(config: GPTConfig, weights: Weights, lora: LoRA | None = None) -> GPT:
        return _filled(model_class, config, seed, parameter_dtype, weights, packed, lora)

    def load_base(name: str, format: str, dropout: float) -> GPT:
        formats: dict[str, Any] = {"dtype": dtype, "quantize": quantize}
        if by_default:  # the format that the adapter was trained in
            formats = {"dtype": "bfloat16"} if format == "bfloat16" else {"quantize": format}
        without = None if heads is None else lambda weights: None  # the run has its own head
        return from_pretrained(name, **formats, dropout=dropout, seed=seed, model_class=model_class, heads=without)

    def read(folder: Path) -> GPT:
        if folder.is_file():
            return _load_nanogpt(folder, make, dropout, heads)
        if is_run(folder):
            return _load_run(folder, checkpoint, make, dropout, heads, load_base)
        if is_adapter(folder):
            options: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "dropout": dropout, "seed": seed}
            base, of = base_of(folder)
            options |= {"revision": of, "model_class": model_class, "heads": heads}
            return load_adapter(from_pretrained(base, **options), folder)
        return _load_directory(folder, make, dropout, heads)

    with backends.use_backend("numpy"):
        model = read_whole(find_model(folder_or_name, revision), read)
    model.eval()
    model.to(backends.current())
    if activations is not None:
        check_activations("from_pretrained", model.packed, activations)
        round_activations(model, activations)
    if lora_of(model) is None:  # otherwise it is that of the base model
        model.source = os.fspath(folder_or_name)
    return model


def load(folder_or_name: str | os.PathLike[str], *, revision: str = "main", **options: Any) -> tuple[GPT, Tokenizer]:
    """Load a model as `from_pretrained` does, with the same options, and the tokenizer in the same folder.

    The two always belong together, even if another model is saved to the folder meanwhile. Raises the errors of
    `from_pretrained`, and CheckpointError if the tokenizer belongs to another model.
    """
    require_libraries(folder_or_name, revision)
    folder = find_model(folder_or_name, revision)

    def read(place: Path) -> tuple[GPT, Tokenizer]:
        model, tokenizer = from_pretrained(place, **options), tokenizer_of(place)
        model.source = os.fspath(folder_or_name) if model.source == os.fspath(place) else model.source
        tokens, ids = tokenizer.vocab_size, model.config.vocab_size
        own = is_run(place) and not (place / GENERATION).exists()  # made for this run, not taken from another model
        if tokenizer.ids_of_texts > ids or (own and tokens != ids):
            raise CheckpointError(
                f"the tokenizer in {folder} has {tokens} tokens, but the model has {ids}: they do not belong together"
            )
        if isinstance(tokenizer, WordPieceTokenizer):  # whose folders often name GPT-2's end, an id they don't have
            model.generation_config = token_ids(tokenizer) | dict(model.generation_config)
        if place.is_file():
            model.generation_config = token_ids(tokenizer)
        return model, tokenizer

    return read_whole(folder, read)


def require_libraries(
    folder_or_name: str | os.PathLike[str], revision: str = "main", backend: str | None = None
) -> None:
    """Raise one MissingExtraError that names all missing libraries for this model, its tokenizer and the backend.

    A model that must be downloaded is assumed to have GPT-2's tokenizer if another library is missing as well.
    """
    here = list[Path | None]()
    require_together(
        *([lambda: backends.get(backend)] if backend is not None else []),
        lambda: here.append(find_here(folder_or_name, revision)),
        lambda: tokenizers.require_library(_folder(with_tokenizer(here[0]))) if here and here[0] else None,
        wanted=[lambda: None if here and here[0] else hf_tokenizers.tokenizers()],
    )


def with_tokenizer(folder: Path) -> Path:
    """The folder whose tokenizer belongs to the model in `folder`: that of the base, for an adapter without its own."""
    own = any((folder / name).exists() for name in TOKENIZER_FILES)
    return folder if own or not is_adapter(folder) else find_model(*base_of(folder))


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer that belongs to the model in `folder`, which may be nanoGPT's file. Raises CheckpointError."""
    place = with_tokenizer(folder)
    return tokenizer_beside(place) if place.is_file() else tokenizers.load(place)


def tokenizer_named(name: str, revision: str = "main") -> Tokenizer:
    """The tokenizer of a model given by name, without downloading weights. Raises UsageError."""
    return tokenizer_of(find_model(name, revision, weights=False))


def _folder(place: Path) -> Path:
    return place.parent if place.is_file() else place


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a training run. With a config.json that is not the run's, it is a GPT-2 directory."""
    return (folder / RUN).exists() and (not (folder / CONFIG).exists() or CONFIG in marked_files(folder))


def _formats(dtype: Any, quantize: Any) -> tuple[str, str | None]:
    """`(dtype of the parameters, packed format or None)`."""
    names = {np.float32: "float32", np.float64: "float64"}
    dtype = dtype if isinstance(dtype, str) else names.get(dtype, dtype)
    if dtype not in ("float32", "float64", "bfloat16"):
        raise UsageError(f"from_pretrained: dtype must be 'float32', 'float64' or 'bfloat16', not {dtype!r}")
    if quantize not in (None, "int8", "int4"):
        raise UsageError(f"from_pretrained: quantize must be None, 'int8' or 'int4', not {quantize!r}")
    if quantize is not None and dtype != "float32":
        raise UsageError(
            f"from_pretrained: dtype={dtype!r} and quantize={quantize!r} contradict each other: remove one"
        )
    return ("float32", "bfloat16") if dtype == "bfloat16" else (dtype, quantize)


def _load_directory(folder: Path, make: Make, dropout: float | None, heads: Heads) -> GPT:
    config, without_bias = read_config(folder, dropout)
    generation = read_generation(folder, config.vocab_size)
    with open_weights(folder) as weights:
        if heads is not None:
            heads(weights)
            config = weights.drop_heads(config)
        weights.check(config)
        if heads is None and weights.take_other_head():
            warnings.warn(
                f"{folder} has a {HEAD} that differs from the token embedding, though its config.json ties them: the "
                "model is loaded with an untied head, as in transformers (tie_word_embeddings=False)",
                stacklevel=8,
            )
            config = dataclasses.replace(config, tie_word_embeddings=False)
        if without_bias and weights.drop_zero_biases():  # nonzero if it was trained further in another program
            config = dataclasses.replace(config, bias=False)
        model = make(config, weights)
    model.generation_config = generation
    return model


def _load_nanogpt(path: Path, make: Make, dropout: float | None, heads: Heads) -> GPT:
    with NanoGPTFile(path) as file:
        config, weights = file.config, Weights(path, [file], settings="model_args")
        if dropout is not None:
            config = dataclasses.replace(config, dropout=dropout)
        if heads is not None:
            heads(weights)
            config = weights.drop_heads(config)
        weights.check(config)
        if heads is None and weights.take_other_head():
            config = dataclasses.replace(config, tie_word_embeddings=False)
        return make(config, weights)


def _load_run(
    folder: Path, which: str, make: Make, dropout: float | None, heads: Heads, load_base: Callable[..., GPT]
) -> GPT:
    """Load the model from a checkpoint. Skips the optimizer's state, which is twice as large as the weights."""
    where = f"the {which} checkpoint in {folder}"

    def read(path: Path) -> GPT:
        state = read_checkpoint(path, parts=()).state
        try:
            with SafetensorsFile(path) as file:
                weights, on = Weights.of_run(path, file), packed_base(state, where)
                if on is not None:
                    (Weights.refuse_classifier if heads is None else heads)(weights)
                    weights.score = None
                    model = on_its_base(partial(load_base, *on), weights, state, dropout, where, heads is not None)
                    model.source = on[0]
                    return model
                config = model_config(state, weights.count, where)
                if heads is None:
                    weights.refuse_classifier()
                else:
                    heads(weights)
                    config = weights.drop_heads(config)
                if dropout is not None:
                    config = dataclasses.replace(config, dropout=dropout)
                lora = made_of(LoRA.from_dict, state, "lora", where) if state.get("lora") is not None else None
                model = make(config, weights, lora)
                base = state.get("base_model")
                model.source = base if isinstance(base, str) else None
                return model
        except (ClassifierFoundError, PackingError):
            raise
        except (UsageError, TypeError, KeyError) as error:
            words = str(error)
            raise CheckpointError(
                words if words.startswith(where) else f"{where} is not a valid model: {words}"
            ) from error

    model = CheckpointFolder(folder).load(which, read)
    if (folder / GENERATION).exists():
        model.generation_config = read_generation(folder, model.config.vocab_size)
    else:
        model.generation_config = token_ids(tokenizers.load(folder))
    return model


def _filled(
    model_class: type[GPT],
    config: GPTConfig,
    seed: int,
    dtype: str,
    weights: Weights,
    packed: str | None,
    lora: LoRA | None,
) -> GPT:
    """A model with these weights. If it is packed, its float32 matrices never all exist at once."""
    # The constructor of a user-defined class may use its weights, so they must be allocated.
    absent = packed is not None and model_class.__init__ is GPT.__init__
    with nn.uninitialized(without_matrices=absent):
        model = model_class(config, seed, dtype)
        if lora is not None:
            weights.check_rank(lora.rank)
            insert_lora(model, lora)
    weights.check_model(model)
    weights.fill(model, packed if absent else None)
    return model if packed is None or absent else model.pack(packed)
