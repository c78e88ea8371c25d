"""Tokenize text ahead of training (`tinygpt tokenize`), into a folder that a run can start from.

The folder holds what the folder of a run holds for its text: tokens.npy, the tokenizer and text.json. So the folder of
another run works as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from ... import tokenizers
from ...files import explain_os_errors
from ...tokenizers import Tokenizer
from ..settings.choose import Settings
from ..settings.config import TrainingConfig
from ..storage.folder import RunFolder
from .corpus import TextOptions
from .prepare import make_text

_ANY_MODEL = {"block_size": 1, "n_layer": 1, "n_head": 1, "n_embd": 1}


def make_token_folder(
    folder: RunFolder,
    names: tuple[str, ...],
    given: Mapping[str, Any],
    tokenizer: str | None,
    vocab_size: int | None,
    validation_fraction: float,
    cache: bool = True,
) -> Tokenizer:
    """Write the token file of the texts, its tokenizer and text.json into the folder; return the tokenizer."""
    config = TrainingConfig(validation_fraction=validation_fraction)
    settings = Settings(
        folder, "numpy", _ANY_MODEL, config, None, names, tokenizer, vocab_size, text=TextOptions(**given),
        cache=cache,
    )  # fmt: skip
    place = make_text(settings)
    found = tokenizers.load(place)
    with explain_os_errors("write", folder):
        for path in sorted(place.iterdir()):
            shutil.move(path, folder.path / path.name)
    return found
