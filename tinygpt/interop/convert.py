"""Convert a training run or a GPT-2 directory to a GPT-2 directory."""

from __future__ import annotations

import os
from pathlib import Path

from .. import nn
from ..errors import UsageError
from ..exchange import whole
from ..nn.lora import lora_of
from .hub import find_model
from .loading import from_pretrained, with_tokenizer
from .peft import write_adapter
from .saving import TOKENIZER_FILES, save


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
    checkpoint: str = "best",
    revision: str = "main",
    merge_lora: bool = False,
) -> Path:
    """Write the model in `source` to the folder `target` as a GPT-2 directory. Returns `target`.

    A model with a LoRA adapter, of a training run or of PEFT: merge_lora adds it to the weights and writes the whole
    model. Otherwise the adapter alone is written, in PEFT's format.

    source: the folder of a training run, a GPT-2 directory, or a model's name. checkpoint: "best" or "latest", for a
    training run. dtype, max_shard_size: see `GPT.save_pretrained`. The tokenizer's files are copied unchanged:
    transformers can read those of a BPE tokenizer, but not tokenizer.tinygpt.json (characters, bytes).
    Raises UsageError, and then leaves `target` unchanged.
    """
    with whole(find_model(source, revision)) as folder:
        model = from_pretrained(folder, dtype="float64" if dtype == "float64" else "float32", checkpoint=checkpoint)
        # Read the tokenizer before writing anything, because `target` may be the same folder.
        own = with_tokenizer(folder)
        tokenizer = {name: (own / name).read_bytes() for name in TOKENIZER_FILES if (own / name).exists()}
    if merge_lora and model.packed:  # the sum is to be rounded once, from the base's own weights
        model = from_pretrained(source, dtype="float64", checkpoint=checkpoint, revision=revision)
    if merge_lora:
        nn.merge_lora(model)

    def write_tokenizer(staging: Path) -> None:
        for name, content in tokenizer.items():
            (staging / name).write_bytes(content)

    if lora_of(model) is None:
        save(model, target, dtype, max_shard_size, write_tokenizer)
    elif max_shard_size is not None:
        raise UsageError("convert: an adapter is written as one file: leave out max_shard_size, or add merge_lora")
    else:
        write_adapter(model, target, dtype, model.source, write_tokenizer)
    return Path(target)
