"""Convert a training run, a GPT-2 directory or a checkpoint of nanoGPT to a GPT-2 directory or a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .. import nn, tokenizers
from ..classifier import GPTForSequenceClassification
from ..data.chat_template import to_jinja
from ..data.dialogue import CHAT_TEMPLATE, TEMPLATE, end_of_text, read_template
from ..errors import CheckpointError, UsageError, require_together
from ..exchange import whole
from ..files import user_path
from ..nn.lora import lora_of
from .classifier import is_classifier, save_classifier
from .gguf import check_dtype, refuse_target, require_gguf, save_gguf
from .hub import find_here, find_model
from .loading import from_pretrained, load, require_libraries, with_tokenizer
from .nanogpt import has_tokenizer, read_tokenizer, require_fit, tokenizer_beside
from .peft import write_adapter
from .peft_head import body_of
from .saving import TOKENIZER_FILES, save, token_ids


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    checkpoint: str = "best",
    revision: str = "main",
    merge_lora: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    to: str = "huggingface",
) -> Path:
    """Write the model in `source` to the folder `target` as a GPT-2 directory, or to a GGUF file. Returns `target`.

    A model with a LoRA adapter, of a training run or of PEFT: merge_lora adds it to the weights and writes the whole
    model. Otherwise the adapter alone is written, in PEFT's format.

    source: the folder of a training run, a GPT-2 directory, nanoGPT's ckpt.pt, or a model's name. checkpoint: "best" or
    "latest", for a training run. dtype, max_shard_size: see `GPT.save_pretrained`. The tokenizer's files are copied
    unchanged: transformers can read those of a BPE tokenizer, but not tokenizer.tinygpt.json (characters, bytes).
    tokenizer: take it from another place, a folder or nanoGPT's meta.pkl.
    to: "huggingface", or "gguf" for a file that llama.cpp loads, which needs the extra `gguf`; its dtypes are "f32",
    "f16", "bf16", "q8_0" and "q4_0" (`save_gguf`).
    Raises UsageError, and then leaves `target` unchanged.
    """
    if to not in ("huggingface", "gguf"):
        raise UsageError(f"convert: to must be 'huggingface' or 'gguf', not {to!r}")
    if to == "gguf":
        if max_shard_size is not None:
            raise UsageError("convert: a GGUF file is not split: leave out max_shard_size")
        return _to_gguf(source, target, dtype or "f32", checkpoint, revision, merge_lora, tokenizer)
    dtype = "float32" if dtype is None else dtype
    require_together(lambda: find_here(source, revision), lambda: _require_given(tokenizer))
    with whole(find_model(source, revision)) as folder:
        labels = is_classifier(folder, checkpoint)
        read = partial(
            GPTForSequenceClassification.from_pretrained if labels else from_pretrained, checkpoint=checkpoint
        )
        model: Any = read(folder, dtype="float64" if dtype == "float64" else "float32")
        # Read the tokenizer before writing anything, because `target` may be the same folder.
        write_tokenizer, special_tokens = _tokenizer_writer(folder, model, tokenizer)
    if merge_lora and model.packed:  # round the sum only once, from the base's own weights
        model = read(source, dtype="float64", revision=revision)
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


def _require_given(tokenizer: str | os.PathLike[str] | None) -> None:
    """Raise MissingExtraError if the tokenizer that is given needs a library that is not installed."""
    if tokenizer is not None:
        tokenizers.require_library(user_path(tokenizer))


def _tokenizer_writer(
    folder: Path, model: Any, given: str | os.PathLike[str] | None
) -> tuple[Callable[[Path], None], dict[str, Any] | None]:
    """A function that writes the tokenizer's files into a folder, and its special tokens, for a model without any."""
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
    if TEMPLATE in content and CHAT_TEMPLATE not in content:  # a run of an older version
        found = tokenizers.load(own)
        jinja = to_jinja(read_template(str(own / TEMPLATE)), found, end_of_text(model, found))
        content[CHAT_TEMPLATE] = jinja.encode("utf-8")

    def write(staging: Path) -> None:
        for name, data in content.items():
            (staging / name).write_bytes(data)

    return write, None


def _to_gguf(
    source: str | os.PathLike[str], target: str | os.PathLike[str], dtype: str, checkpoint: str, revision: str,
    merge_lora: bool, given: str | os.PathLike[str] | None,
) -> Path:  # fmt: skip
    path = user_path(target)
    check_dtype(dtype)
    refuse_target(path)  # before a model is downloaded or read
    require_together(require_gguf, lambda: require_libraries(source, revision), lambda: _require_given(given))
    if given is None:
        model, tokenizer = load(source, revision=revision, checkpoint=checkpoint)
    else:
        model, tokenizer = from_pretrained(source, revision=revision, checkpoint=checkpoint), read_tokenizer(given)
        if (own := find_model(source, revision)).is_file():
            require_fit(tokenizer, own)
    if merge_lora and model.packed:  # as above
        model = from_pretrained(source, dtype="float64", revision=revision, checkpoint=checkpoint)
    if merge_lora:
        nn.merge_lora(model)
    save_gguf(model, tokenizer, path, dtype=dtype)
    return path
