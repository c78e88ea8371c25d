"""From a model to a GPT-2 directory that transformers loads, of which there is never half.

A directory is several files that belong together, and no system renames several files at once. So:

    1. everything is written into a folder beside, FOLDER/.saving-XXXX.tmp, and brought to the disk;
    2. that folder is renamed to FOLDER/.saved. This one rename is the moment at which the new model counts;
    3. its files are moved to their places, one after the other; files of the old model that the new one does not
       have are removed; .saved disappears.

Killed in 1: the old model is untouched. Killed in 3: `from_pretrained` and the next `save_pretrained` find .saved and
finish the moves before anything else (`finish_save`). So for tinygpt the folder holds the old or the new model, whole,
at any moment. Another program that reads in the milliseconds of 3 may see some files of either; where a model is saved
again with the same configuration, as after more training, its one file of weights changes in one rename for it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from ..data.tokens import explain_os_errors, folder_made
from ..errors import CheckpointError, UsageError
from ..files import sync_folder
from ..gpt import GPT
from ..plain_gpt import difference_from_gpt2
from ..safetensors_io import CODES, DTYPES, write_safetensors
from .config import CONFIG, GENERATION, TOKEN_IDS, config_json, read_json
from .weights import INDEX, PREFIX, SINGLE, parameter_shapes

SAVED, MANIFEST = ".saved", "manifest.json"
FORMATS = ("float32", "bfloat16", "float16", "float64")
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.tinygpt.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
        "merges.txt", "added_tokens.json", "chat_template.jinja",
    }
)  # fmt: skip
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def save_pretrained(
    model: GPT,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
    tokenizer: Any = None,
) -> None:
    """What `GPT.save_pretrained` does; see there."""
    if tokenizer is None:
        return save(model, folder, dtype, max_shard_size, None)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"save_pretrained: the tokenizer has {tokenizer.vocab_size} tokens and the model "
            f"{model.config.vocab_size}: they do not belong together"
        )
    save(model, folder, dtype, max_shard_size, tokenizer.save, token_ids(tokenizer))


def token_ids(tokenizer: Any) -> dict[str, Any]:
    """The ids of the special tokens that a tokenizer has, by the names of generation_config.json."""
    return {name: getattr(tokenizer, name) for name in TOKEN_IDS if getattr(tokenizer, name) is not None}


def save(
    model: GPT,
    folder: str | os.PathLike[str],
    dtype: str,
    max_shard_size: int | str | None,
    write_tokenizer: Callable[[Path], None] | None,
    special_tokens: Mapping[str, Any] | None = None,
) -> None:
    """As `save_pretrained`, but the tokenizer's files are written by a function that gets a folder.

    special_tokens: instead of those in the model's generation_config.
    """
    if dtype not in FORMATS:
        raise UsageError(f"save_pretrained: dtype must be one of {', '.join(FORMATS)}, not {dtype!r}")
    limit, arrays = _shard_size(max_shard_size), _arrays(model)
    generation = _generation(model, special_tokens)
    folder = folder_made(Path(folder).expanduser())
    if (folder / "checkpoints.json").exists():
        raise UsageError(f"save_pretrained: {folder} holds a training run, which has files of its own: choose another")
    finish_save(folder)
    with explain_os_errors("save the model to", folder):
        staging = folder / f".saving-{secrets.token_hex(4)}.tmp"
        _remove_left_over(folder)
        staging.mkdir()
        try:
            _write_json(staging / CONFIG, config_json(model.config, dtype, generation))
            _write_json(staging / GENERATION, generation)
            if write_tokenizer is not None:
                write_tokenizer(staging)
            _write_weights(staging, arrays, dtype, limit)
            _write_json(staging / MANIFEST, _manifest(folder, staging))
            sync_folder(staging)
            os.rename(staging, folder / SAVED)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync_folder(folder)
    finish_save(folder)


def _arrays(model: GPT) -> dict[str, Any]:
    """Stored name -> array of every parameter; biases that the model doesn't have are zeros."""
    own = model.state_dict()
    shapes = dict(parameter_shapes(model.config))
    absent = {name for name in shapes if name.endswith(".bias") and not model.config.bias}
    _refuse_more_than_weights(model, own.keys(), shapes.keys() - absent)
    return {f"{PREFIX}{name}": own[name] if name in own else np.zeros(shape, "f4") for name, shape in shapes.items()}


def _refuse_more_than_weights(model: GPT, own: Set[str], expected: Set[str]) -> None:
    """Raise UsageError where the files, which are sizes and weights and no code, would make another model than this."""
    difference = difference_from_gpt2(model)
    if difference is None and own != expected:
        name = min(own ^ expected)
        difference = f"there is {'a' if name in own else 'no'} parameter {name}"
    if difference is not None:
        raise UsageError(
            f"save_pretrained: {difference}, and the files of a GPT-2 can't say so: put what it does into plain layers "
            "first, or save model.state_dict() in a format of your own"
        )


def _generation(model: GPT, special_tokens: Mapping[str, Any] | None) -> dict[str, Any]:
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
    """Bytes, from a number or a text such as "200MB"."""
    if size is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", size) if isinstance(size, str) else None
    count = size if type(size) is int else found and int(float(found[1]) * _UNITS[found[2] or ""])
    if not count or count < 1:
        raise UsageError(f"save_pretrained: max_shard_size must be a number of bytes or like '200MB', not {size!r}")
    return count


# Writing ----------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
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
    place = {stored: name for name, shard in zip(names, shards, strict=True) for stored in shard}
    _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": place})


def _shards(arrays: dict[str, Any], itemsize: int, limit: int | None) -> list[list[str]]:
    """The arrays in their order, cut into parts of at most `limit` bytes; a larger array is a part by itself."""
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


# From the folder beside to the places of the files ----------------------------------------------------


def _manifest(folder: Path, staging: Path) -> dict[str, list[str]]:
    """The new model's files, in the order in which they are moved, and the old model's that must go."""
    names = sorted(os.listdir(staging), key=lambda name: (name in (SINGLE, INDEX), name))
    # Of the tokenizer only if the new model brings one: else the folder keeps what it has.
    kinds = TOKENIZER_FILES if TOKENIZER_FILES.intersection(names) else frozenset()
    old = {name for name in os.listdir(folder) if name in (SINGLE, INDEX) or name in kinds or _SHARD.fullmatch(name)}
    return {"files": names, "stale": sorted(old - set(names))}


def finish_save(folder: Path) -> None:
    """Finish the moves of a save that was interrupted after it counted; see the top of this file."""
    saved = folder / SAVED
    if not saved.is_dir():
        return
    try:
        if (saved / MANIFEST).exists():
            manifest = read_json(saved / MANIFEST)
            for name in manifest["files"]:
                with contextlib.suppress(FileNotFoundError):  # moved before the interruption
                    os.replace(saved / _plain(name), folder / name)
            for name in manifest["stale"]:
                (folder / _plain(name)).unlink(missing_ok=True)
            sync_folder(folder)
            (saved / MANIFEST).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            saved.rmdir()
    except (OSError, KeyError, TypeError, ValueError) as error:
        if not (saved / MANIFEST).exists():  # another process has come to load it, and has finished the moves
            return
        raise CheckpointError(
            f"{saved} holds a complete model whose saving was interrupted, and its files can't be moved to {folder}: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from error


def _plain(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise ValueError(f"{MANIFEST} names {name!r}, which is no file of this folder")
    return name


def _remove_left_over(folder: Path) -> None:
    """What killed processes have left half-written."""
    for path in folder.glob(".saving-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
