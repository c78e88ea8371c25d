"""From one folder to another: a training run or a GPT-2 directory becomes a GPT-2 directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .hub import find_model
from .loading import from_pretrained
from .saving import TOKENIZER_FILES, finish_save, save


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
    checkpoint: str = "best",
    revision: str = "main",
) -> Path:
    """Write the model of `source` to the folder `target` as a GPT-2 directory; returns `target`.

    source: the folder of a training run (whose "best" or "latest" checkpoint is taken), a GPT-2 directory, or a name.
    dtype, max_shard_size: as `GPT.save_pretrained` has them. The tokenizer's files are copied as they are: those of a
    BPE tokenizer are read by transformers too, tokenizer.tinygpt.json (characters, bytes) by tinygpt alone.
    Raises UsageError; `target` then holds what it held before.
    """
    folder = find_model(source, revision)
    finish_save(folder)
    model = from_pretrained(folder, dtype="float64" if dtype == "float64" else "float32", checkpoint=checkpoint)

    def copy_tokenizer(staging: Path) -> None:
        for name in TOKENIZER_FILES:
            if (folder / name).exists():
                shutil.copyfile(folder / name, staging / name)

    save(model, target, dtype, max_shard_size, copy_tokenizer)
    return Path(target)
