"""LoRA adapters as files, in the format of the PEFT library: either program loads what the other has written.

    save_adapter(model, "adapter", base="gpt2")                     # adapter_config.json, adapter_model.safetensors
    model = GPT.from_pretrained("adapter")                          # finds the base by its name, and adds the adapter
    load_adapter(GPT.from_pretrained("gpt2"), "adapter")            # onto a base that is loaded already

An adapter holds only the updates, a few MB. Names and shapes are those of `tinygpt/nn/lora.py`, with a prefix:

    h.0.attn.c_attn.lora_A (rank, in)        base_model.model.transformer.h.0.attn.c_attn.lora_A.weight
    h.0.attn.c_attn.lora_B (out, rank)       base_model.model.transformer.h.0.attn.c_attn.lora_B.weight

`fan_in_fan_out` says that the base stores its weights as (in, out), as GPT-2 does; A and B don't depend on it. The
arrays in the file determine which layers are adapted. A setting of PEFT that changes what the model computes, but that
this package lacks, is an error that names it (`peft_config.py`).

The file's metadata also holds the base's sizes, which PEFT ignores, so that an adapter is not loaded onto a different
model of the same shapes, such as one with another vocabulary.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .. import backends, exchange
from ..array_file import ArrayFile
from ..errors import CheckpointError, MissingExtraError, UsageError
from ..files import folder_made, user_path
from ..nn import Module
from ..nn.lora import LoRA, insert_lora, linear_paths, lora_layers, lora_of
from ..safetensors_io import SafetensorsFile, write_safetensors
from ..tokenizers import Tokenizer
from .config import read_json
from .hub import find_here
from .peft_config import config_json, settings_of
from .peft_head import ARRAY, TASK, body_of, head_content, head_in, put_head, without_head
from .saving import FORMATS, saved_together
from .torch_file import TorchFile
from .weights import ADAPTER, ADAPTER_CONFIG, ORDER, TORCH_ADAPTER

_Model = TypeVar("_Model", bound=Module)

_PREFIX, _BODY = "base_model.model.", "transformer."
_ARRAY = re.compile(rf"{re.escape(_PREFIX)}(?:{re.escape(_BODY)})?(.+)\.lora_([AB])\.weight")
_BASE = "tinygpt_base"  # the entry of the metadata with the base's configuration
_OF_THE_BASE = ("vocab_size", "n_layer", "n_head", "n_embd", "n_inner", "activation_function")


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter. Raises CheckpointError if it holds a model as well."""
    if not (folder / ADAPTER_CONFIG).exists():
        return False
    for name in ORDER:
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder} holds both an adapter ({ADAPTER_CONFIG}) and a whole model ({name}): move the adapter's "
                "files to a separate folder"
            )
    return True


# Saving ---------------------------------------------------------------------------------------------


def save_adapter(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write the model's adapter to `folder`, replacing an adapter that is there.

    base: the folder or name of the base model, which is recorded so that the adapter can be loaded by itself; by
    default where the model was loaded from. dtype: "float32", "bfloat16", "float16" or "float64". tokenizer: also
    write its files.
    A crash or a full disk leaves either the old adapter or the new one intact. Raises UsageError.
    """
    base = getattr(model, "source", None) if base is None else os.fspath(base)
    write_adapter(model, folder, dtype, base, None if tokenizer is None else tokenizer.save)


def write_adapter(
    model: Any,
    folder: str | os.PathLike[str],
    dtype: str,
    base: str | None,
    write_tokenizer: Callable[[Path], None] | None,
) -> None:
    """As `save_adapter`, but with a function that writes the tokenizer's files into a given folder."""
    lora = lora_of(model)
    if lora is None:
        raise UsageError("save_adapter: this model has no adapter: add one with tinygpt.nn.add_lora, or save the model")
    if dtype not in FORMATS:
        raise UsageError(f"save_adapter: dtype must be one of {', '.join(FORMATS)}, not {dtype!r}")
    if base is not None and user_path(base).is_dir():
        base = str(user_path(base).resolve())  # so that it is found from any folder
    folder = folder_made(user_path(folder))
    for name in (*ORDER, "checkpoints.json"):
        if (folder / name).exists():
            raise UsageError(f"save_adapter: {folder} contains a model ({name}): choose another folder")
    with saved_together(folder, "adapter", lambda staging: (sorted(os.listdir(staging)), ())) as staging:
        if write_tokenizer is not None:
            write_tokenizer(staging)
        _write(staging, model, config_json(lora, base), dtype)


def _write(folder: Path, model: Any, content: Mapping[str, Any], dtype: str) -> None:
    settings, arrays, metadata = head_content(model)
    for path, layer in lora_layers(body_of(model)).items():
        for letter, parameter in (("A", layer.lora_A), ("B", layer.lora_B)):
            arrays[f"{_PREFIX}{_BODY}{path}.lora_{letter}.weight"] = backends.move(parameter.data, "numpy")
    base = {name: getattr(model.config, name) for name in _OF_THE_BASE}
    with open(folder / ADAPTER, "wb") as file:
        write_safetensors(file, arrays, {"format": "pt", _BASE: json.dumps(base), **metadata}, dtype)
        file.flush()
        os.fsync(file.fileno())
    with open(folder / ADAPTER_CONFIG, "wb") as file:
        file.write(json.dumps({**content, **settings}, indent=2, sort_keys=True).encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


# Loading --------------------------------------------------------------------------------------------


def base_of(folder: Path) -> tuple[str, str]:
    """The base model that the adapter in `folder` names: its folder or name, and the revision.

    Raises CheckpointError if there is no such model here.
    """
    path = folder / ADAPTER_CONFIG
    content = read_json(path)
    name, revision = content.get("base_model_name_or_path"), content.get("revision")
    revision = revision if isinstance(revision, str) else "main"
    to_do = (
        f"load the base yourself, tinygpt.interop.load_adapter(GPT.from_pretrained(BASE), {str(folder)!r}), or write "
        f"its folder into {path} as base_model_name_or_path"
    )
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"the adapter in {folder} does not say which model it is for: {to_do}")
    if not user_path(name).is_dir() and (folder / name).is_dir():  # a path relative to the adapter
        name = str(folder / name)
    try:
        found = find_here(name, revision)
    except MissingExtraError:
        raise
    except UsageError as error:
        raise CheckpointError(f"the adapter in {folder} is for the model {name!r}, but {error}; or {to_do}") from error
    if found is not None and found.resolve() == folder.resolve():
        raise CheckpointError(f"the adapter in {folder} names its own folder as its base model: {to_do}")
    return name, revision


def load_adapter(model: _Model, folder: str | os.PathLike[str]) -> _Model:
    """Add the adapter in `folder` to `model`, its base, which is frozen. Returns the model.

    An adapter of a classifier (PEFT's SEQ_CLS) needs a `GPTForSequenceClassification`, which also gets its head. The
    adapter may have been written by PEFT. Raises CheckpointError if it is damaged, made for another model, or needs
    something that this package lacks; the model is then unchanged.
    """
    return exchange.read_whole(user_path(folder), lambda place: _load(model, place))


def _load(model: Any, folder: Path) -> Any:
    if lora_of(model) is not None:
        raise UsageError("load_adapter: this model has an adapter already: merge it first (tinygpt.nn.merge_lora)")
    path = folder / ADAPTER_CONFIG
    content = read_json(path)
    lora = settings_of(path, without_head(content))
    body, head = body_of(model), None
    if content.get("task_type") == TASK and body is model:
        raise CheckpointError(
            f"the adapter in {folder} is for a classifier: load it with GPTForSequenceClassification.from_pretrained, "
            "or onto such a model"
        )
    with open_adapter(folder) as file:
        _check_base(body, file)
        if content.get("task_type") == TASK:
            head_in(file, *model.score.weight.shape)
            head = file.read(ARRAY)
        found = _paths(body, file, lora, head is not None)
        targets = _targets(folder, content, found, linear_paths(body))
        arrays = {name: file.read(name) for names in found.values() for name in names}
    insert_lora(body, LoRA(lora.rank, lora.alpha, lora.dropout, targets, lora.rslora))
    if head is not None:
        put_head(model, head)
    for layer_path, layer in lora_layers(body).items():
        for parameter, name in zip((layer.lora_A, layer.lora_B), found[layer_path], strict=True):
            parameter.data[...] = backends.move(arrays[name].astype(parameter.dtype), parameter.backend)
            parameter.mark_changed()
    return model


def open_adapter(folder: Path) -> ArrayFile:
    """The file of an adapter's arrays: a context manager."""
    torch_file = not (folder / ADAPTER).exists() and (folder / TORCH_ADAPTER).exists()
    return TorchFile(folder / TORCH_ADAPTER) if torch_file else SafetensorsFile(folder / ADAPTER)


def _check_base(model: Any, file: ArrayFile) -> None:
    """Raise CheckpointError if the file says that it was made for a model of other sizes."""
    try:
        sizes = dict(json.loads(getattr(file, "metadata", {}).get(_BASE, "{}")))
        wrong = [name for name in _OF_THE_BASE if name in sizes and sizes[name] != getattr(model.config, name)]
    except (ValueError, TypeError, RecursionError):
        raise CheckpointError(f"{file.path} is damaged: its entry {_BASE} is not a JSON object") from None
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"the adapter {file.path} was made for another model: {name} is {sizes[name]!r} there and "
            f"{getattr(model.config, name)!r} here"
        )


def _paths(model: Any, file: ArrayFile, lora: LoRA, head: bool) -> dict[str, list[str]]:
    """Path of a layer -> the names of its A and B. head: whether the file may also have a classifier's head.

    Raises CheckpointError unless all fit this model.
    """
    shapes = linear_paths(model)
    found: dict[str, dict[str, str]] = {}
    for name, info in file.arrays.items():
        if head and name == ARRAY:
            continue
        match = _ARRAY.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"the adapter {file.path} holds {name!r}, which is not part of an update of a linear layer: tinygpt "
                "supports adapters that train nothing else"
            )
        path, letter = match[1], match[2]
        if path not in shapes:
            raise CheckpointError(
                f"the adapter {file.path} is for another model: it adapts {path}, and this model has no linear layer "
                "of that name"
            )
        rows, columns = shapes[path]
        expected = (lora.rank, rows) if letter == "A" else (columns, lora.rank)
        if info.shape != expected:
            raise CheckpointError(
                f"the adapter {file.path} is for another model: {name!r} has shape {info.shape}, and a rank of "
                f"{lora.rank} for this model's {path} needs {expected}"
            )
        if letter in found.setdefault(path, {}):
            raise CheckpointError(f"the adapter {file.path} contains {path}.lora_{letter} twice")
        found[path][letter] = name
    for path, names in found.items():
        if len(names) < 2:
            raise CheckpointError(f"the adapter {file.path} lacks {path}.lora_{'B' if 'A' in names else 'A'}")
    if not found:
        raise CheckpointError(f"the adapter {file.path} is empty: it adapts no layer")
    return {path: [names["A"], names["B"]] for path, names in found.items()}


def _targets(
    folder: Path, content: Mapping[str, Any], found: Mapping[str, Any], linear: Mapping[str, Any]
) -> tuple[str, ...]:
    """The targets that match exactly the layers in the file: those of the configuration, if it has names.

    If it has a regular expression, or excludes layers, the paths themselves. Raises CheckpointError if any is missing.
    """
    names = content.get("target_modules")
    chosen = [content.get(name) for name in ("layers_to_transform", "exclude_modules")]
    if not isinstance(names, list) or any(value not in (None, []) for value in chosen):
        return tuple(found)
    targets = tuple(str(name).removeprefix(_BODY) for name in names)
    matching = [path for path in linear if any(path == t or path.endswith(f".{t}") for t in targets)]
    for path in {*matching} ^ found.keys():
        where = "holds no update of" if path in matching else "holds an update of"
        raise CheckpointError(
            f"the adapter in {folder} is damaged or for another model: it {where} {path}, against the target_modules "
            f"in its {ADAPTER_CONFIG}"
        )
    return targets
