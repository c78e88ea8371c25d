"""Convert a training run or a GPT-2 directory to a GPT-2 directory."""

from __future__ import annotations

import os
from pathlib import Path

from ..exchange import whole
from .hub import find_model
from .loading import from_pretrained
from .saving import TOKENIZER_FILES, save


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
    checkpoint: str = "best",
    revision: str = "main",
) -> Path:
    """Write the model in `source` to the folder `target` as a GPT-2 directory. Returns `target`.

    source: the folder of a training run, a GPT-2 directory, or a model's name. checkpoint: "best" or "latest", for a
    training run. dtype, max_shard_size: see `GPT.save_pretrained`. The tokenizer's files are copied unchanged:
    transformers can read those of a BPE tokenizer, but not tokenizer.tinygpt.json (characters, bytes).
    Raises UsageError, and then leaves `target` unchanged.
    """
    with whole(find_model(source, revision)) as folder:
        model = from_pretrained(folder, dtype="float64" if dtype == "float64" else "float32", checkpoint=checkpoint)
        # Read the tokenizer before writing anything, because `target` may be the same folder.
        tokenizer = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).exists()}

    def write_tokenizer(staging: Path) -> None:
        for name, content in tokenizer.items():
            (staging / name).write_bytes(content)

    save(model, target, dtype, max_shard_size, write_tokenizer)
    return Path(target)
