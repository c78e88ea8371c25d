"""Save a model atomically as a GPT-2 directory that transformers can load.

The directory consists of several files that must match, so they are replaced together (see `exchange.py`). If the
process is killed at any moment, the folder contains either the complete old model or the complete new one.
`from_pretrained` reads the right one without modifying the folder, and the next `save_pretrained` finishes an
interrupted save. Another program that reads during the few milliseconds of the moves may see a mix of both models. If
the configuration has not changed, as after more training, only the one file of weights differs, and it is replaced by a
single rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import exchange
from ..errors import UsageError
from ..files import explain_os_errors, folder_made, user_path
from ..gpt import GPT
from ..safetensors_io import CODES, DTYPES, write_safetensors
from ..tokenizers import Tokenizer
from .config import CONFIG, GENERATION, TOKEN_IDS, config_json
from .plain_gpt import difference_from_gpt2
from .weights import ADAPTER, ADAPTER_CONFIG, HEAD, INDEX, PREFIX, SINGLE, parameter_shapes

FORMATS = ("float32", "bfloat16", "float16", "float64")
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.tinygpt.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
        "merges.txt", "vocab.txt", "added_tokens.json", "chat_template.jinja", "template.toml",
    }
)  # fmt: skip
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_STAGING = re.compile(r"\.saving-[0-9a-f]{8}\.tmp")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def save_pretrained(
    model: GPT,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """See `GPT.save_pretrained`."""
    if tokenizer is None:
        return save(model, folder, dtype, max_shard_size, None)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"save_pretrained: the tokenizer has {tokenizer.vocab_size} tokens, but the model has only "
            f"{model.config.vocab_size}: they do not belong together"
        )
    save(model, folder, dtype, max_shard_size, tokenizer.save, token_ids(tokenizer))


def token_ids(tokenizer: Any) -> dict[str, Any]:
    """The ids of a tokenizer's special tokens, under their names in generation_config.json."""
    return {name: getattr(tokenizer, name) for name in TOKEN_IDS if getattr(tokenizer, name) is not None}


def save(
    model: GPT,
    folder: str | os.PathLike[str],
    dtype: str,
    max_shard_size: int | str | None,
    write_tokenizer: Callable[[Path], None] | None,
    special_tokens: Mapping[str, Any] | None = None,
    best: Mapping[str, Any] | None = None,
) -> None:
    """As `save_pretrained`, but with a function that writes the tokenizer's files into a given folder.

    special_tokens: replace those in the model's generation_config. best: weights to write instead of the model's own,
    those of the best checkpoint of the run in the folder, which is then allowed to hold one.
    """
    _check_format(dtype)
    arrays, generation = arrays_of(model, best), generation_of(model, special_tokens)
    settings = config_json(model.config, dtype, generation)
    content = Folder(settings, generation, arrays, write_tokenizer)
    write_folder(folder, content, dtype, max_shard_size, of_run=best is not None)


class Folder(NamedTuple):
    """What a model's folder will hold."""

    settings: Mapping[str, Any]  # of config.json
    generation: Mapping[str, Any]  # of generation_config.json
    arrays: dict[str, Any]  # stored name -> array
    write_tokenizer: Callable[[Path], None] | None


def write_folder(
    folder: str | os.PathLike[str], content: Folder, dtype: str, max_shard_size: int | str | None, of_run: bool = False
) -> None:
    """Write a model's files, replacing those of an older model together. of_run: whether the folder's run made it.

    Raises UsageError.
    """
    _check_format(dtype)
    limit = _shard_size(max_shard_size)
    folder = folder_made(user_path(folder))
    if not of_run and (folder / "checkpoints.json").exists():
        raise UsageError(f"save_pretrained: {folder} contains a training run: choose another folder")
    if (folder / ADAPTER_CONFIG).exists():
        raise UsageError(f"save_pretrained: {folder} contains an adapter: choose another folder")
    with saved_together(folder, "model", lambda staging: _files(folder, staging)) as staging:
        write_json(staging / CONFIG, content.settings)
        write_json(staging / GENERATION, content.generation)
        if content.write_tokenizer is not None:
            content.write_tokenizer(staging)
        _write_weights(staging, content.arrays, dtype, limit)


@contextlib.contextmanager
def saved_together(folder: Path, what: str, files: Callable[[Path], tuple[list[str], Iterable[str]]]) -> Iterator[Path]:
    """A folder in which to write files that then replace those in `folder`, all or none. what: the files, in errors.

    files: given the folder with the new files, their names in the order in which to move them, and the names of files
    that they make obsolete. Raises UsageError.
    """
    finish_save(folder)
    with explain_os_errors(f"save the {what} to", folder):
        staging = folder / f".saving-{secrets.token_hex(4)}.tmp"
        _remove_left_over(folder)
        staging.mkdir()
        try:
            yield staging
            exchange.commit(staging, folder, *files(staging))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    finish_save(folder)


def _check_format(dtype: str) -> None:
    if dtype not in FORMATS:
        raise UsageError(f"save_pretrained: dtype must be one of {', '.join(FORMATS)}, not {dtype!r}")


def arrays_of(model: GPT, best: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Stored name -> array of every parameter. For a model without biases, biases are zeros. best: replaces its own."""
    state = model.state_dict() if best is None else best
    _refuse(difference_from_gpt2(model))
    shapes = dict(parameter_shapes(model.config))
    expected = {name for name in shapes if model.config.bias or not name.endswith(".bias")}
    if state.keys() != expected:
        name = min(state.keys() ^ expected)
        _refuse(f"there is {'a' if name in state else 'no'} parameter {name}")
    stored = {name: name if name == HEAD else PREFIX + name for name in shapes}  # the head is not inside `transformer`
    return {stored[name]: state[name] if name in state else np.zeros(shape, "f4") for name, shape in shapes.items()}


def _refuse(difference: str | None) -> None:
    """Raise UsageError if there is a difference: the files hold sizes and weights, not code, so they would lose it."""
    if difference is not None:
        raise UsageError(
            f"save_pretrained: {difference}, which the GPT-2 format can't represent: use plain layers instead, or save "
            "model.state_dict() in a format of your own"
        )


def generation_of(model: GPT, special_tokens: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of generation_config.json."""
    settings: Any = model.generation_config
    if not isinstance(settings, Mapping):
        from ..generation import config_to_dict

        settings = config_to_dict(settings)
    content = dict(settings)
    if special_tokens is not None:
        content = {name: value for name, value in content.items() if name not in TOKEN_IDS} | dict(special_tokens)
    try:
        json.dumps(content, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UsageError(f"save_pretrained: the model's generation_config can't be written as JSON: {error}") from error
    return content


def _shard_size(size: int | str | None) -> int | None:
    """Bytes, from a number or a string such as "200MB"."""
    if size is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", size) if isinstance(size, str) else None
    count = size if type(size) is int else found and int(float(found[1]) * _UNITS[found[2] or ""])
    if not count or count < 1:
        raise UsageError(f"save_pretrained: max_shard_size must be a number of bytes or e.g. '200MB', not {size!r}")
    return count


# Writing ----------------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:
        file.write(json.dumps(content, indent=2, sort_keys=True).encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _write_weights(folder: Path, arrays: dict[str, Any], dtype: str, limit: int | None) -> None:
    itemsize = np.dtype(DTYPES[CODES[dtype]]).itemsize
    shards = _shards(arrays, itemsize, limit)
    if len(shards) == 1:
        return _write_file(folder / SINGLE, arrays, dtype)
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, {stored: arrays[stored] for stored in shard}, dtype)
    size = sum(array.size for array in arrays.values()) * itemsize
    file_of = {stored: name for name, shard in zip(names, shards, strict=True) for stored in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": file_of})


def _shards(arrays: dict[str, Any], itemsize: int, limit: int | None) -> list[list[str]]:
    """Split the arrays, in order, into shards of at most `limit` bytes. A larger array gets its own shard."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, array in arrays.items():
        size = array.size * itemsize
        if limit is not None and room is not None and size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room = None if room is None else room - size
    return shards


def _write_file(path: Path, arrays: dict[str, Any], dtype: str) -> None:
    with open(path, "wb") as file:
        write_safetensors(file, arrays, {"format": "pt"}, dtype)
        file.flush()
        os.fsync(file.fileno())


# Moving the files from the staging folder into place --------------------------------------------------


def _files(folder: Path, staging: Path) -> tuple[list[str], list[str]]:
    """The new model's files, in the order in which they are moved, and the old model's files to remove."""
    names = sorted(os.listdir(staging), key=lambda name: (name in (SINGLE, INDEX), name))
    # Remove the old tokenizer only if the new model has one.
    kinds = TOKENIZER_FILES if TOKENIZER_FILES.intersection(names) else frozenset()
    old = [name for name in os.listdir(folder) if name in kinds or _is_weights(name)]
    return names, old


def _is_weights(name: str) -> bool:
    return name in (SINGLE, INDEX) or _SHARD.fullmatch(name) is not None


def finish_save(folder: Path) -> None:
    """Finish the moves of a save that was interrupted after its commit. Call this before saving to the folder again."""
    files = {*TOKENIZER_FILES, CONFIG, GENERATION, ADAPTER, ADAPTER_CONFIG}
    exchange.finish(folder, lambda name: name in files or _is_weights(name))


def _remove_left_over(folder: Path) -> None:
    """Remove the staging folders of killed processes."""
    for path in folder.glob(".saving-*.tmp"):
        if _STAGING.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
