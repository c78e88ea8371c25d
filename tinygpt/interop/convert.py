"""Convert a training run, a GPT-2 directory or a checkpoint of nanoGPT to a GPT-2 directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .. import nn
from ..classifier import GPTForSequenceClassification
from ..errors import CheckpointError, UsageError
from ..exchange import whole
from ..nn.lora import lora_of
from .classifier import is_classifier, save_classifier
from .hub import find_model
from .loading import from_pretrained, with_tokenizer
from .nanogpt import has_tokenizer, read_tokenizer, require_fit, tokenizer_beside
from .peft import write_adapter
from .peft_head import body_of
from .saving import TOKENIZER_FILES, save, token_ids


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
    checkpoint: str = "best",
    revision: str = "main",
    merge_lora: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the model in `source` to the folder `target` as a GPT-2 directory. Returns `target`.

    A model with a LoRA adapter, of a training run or of PEFT: merge_lora adds it to the weights and writes the whole
    model. Otherwise the adapter alone is written, in PEFT's format.

    source: the folder of a training run, a GPT-2 directory, nanoGPT's ckpt.pt, or a model's name. checkpoint: "best" or
    "latest", for a training run. dtype, max_shard_size: see `GPT.save_pretrained`. The tokenizer's files are copied
    unchanged: transformers can read those of a BPE tokenizer, but not tokenizer.tinygpt.json (characters, bytes).
    tokenizer: take it from another place, a folder or nanoGPT's meta.pkl.
    Raises UsageError, and then leaves `target` unchanged.
    """
    with whole(find_model(source, revision)) as folder:
        labels = is_classifier(folder, checkpoint)
        load = partial(
            GPTForSequenceClassification.from_pretrained if labels else from_pretrained, checkpoint=checkpoint
        )
        model: Any = load(folder, dtype="float64" if dtype == "float64" else "float32")
        # Read the tokenizer before writing anything, because `target` may be the same folder.
        write_tokenizer, special_tokens = _tokenizer_writer(folder, model, tokenizer)
    if merge_lora and model.packed:  # the sum is to be rounded once, from the base's own weights
        model = load(source, dtype="float64", revision=revision)
    if merge_lora:
        nn.merge_lora(body_of(model))

    if lora_of(body_of(model)) is None:
        write = save_classifier if labels else save
        write(model, target, dtype, max_shard_size, write_tokenizer, special_tokens)
    elif max_shard_size is not None:
        raise UsageError("convert: an adapter is written as one file: leave out max_shard_size, or add merge_lora")
    else:
        write_adapter(model, target, dtype, model.source, write_tokenizer)
    return Path(target)


def _tokenizer_writer(
    folder: Path, model: Any, given: str | os.PathLike[str] | None
) -> tuple[Callable[[Path], None], dict[str, Any] | None]:
    """What writes the tokenizer's files into a folder, and its special tokens where the model has none of its own."""
    own = with_tokenizer(folder)
    tokenizer = None
    if given is not None:
        tokenizer = read_tokenizer(given)
    elif own.is_file() and has_tokenizer(own.parent):
        tokenizer = tokenizer_beside(own)
    if tokenizer is not None:
        if own.is_file():
            require_fit(tokenizer, own)
        elif tokenizer.ids_of_texts > model.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer in {os.fspath(given or own)} has {tokenizer.vocab_size} tokens, but the model has "
                f"{model.config.vocab_size}: they do not belong together"
            )
        return tokenizer.save, token_ids(tokenizer)
    content = {name: (own / name).read_bytes() for name in TOKENIZER_FILES if (own / name).exists()}

    def write(staging: Path) -> None:
        for name, data in content.items():
            (staging / name).write_bytes(data)

    return write, None
