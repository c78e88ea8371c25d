"""A run that trains an adapter on a packed base: its checkpoint holds what is trained, and names the base.

The matrices of a packed model can't be trained and its other weights are frozen, so a checkpoint of the whole model
would repeat, at each save, what the base's own file holds. The state of such a run is therefore only the adapter (and a
classifier's head), together with a hash that identifies the base that they were trained on.

The base is loaded from where the run found it, and must be unchanged: it must have the same shape and, if it is packed
in the same format, the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import backends
from ..checkpoint import made_of, require_same
from ..checks import whole_number
from ..errors import CheckpointError, UsageError
from ..gpt import GPT, GPTConfig
from ..nn import Module, Parameter
from ..nn.lora import LoRA, insert_lora
from ..nn.packed import PackedEmbedding, PackedLinear
from .weights import Weights

FORMATS = ("int8", "int4", "bfloat16")
_OWN = frozenset({"block_size", "dropout"})  # settings in which a run may differ from its base
_HEAD = "lm_head"


# What is saved ----------------------------------------------------------------------------------------


def is_packed(model: Any) -> bool:
    """Whether the model's matrices are packed."""
    return bool(getattr(model, "packed", None))


def packed_bytes(model: Any) -> int:
    """The bytes of the packed matrices, which are not parameters; 0 for a model without."""
    layers = (module for module in model.modules() if isinstance(module, (PackedLinear, PackedEmbedding)))
    return sum(layer.matrix.nbytes for layer in layers)


def weights_of(model: Any) -> dict[str, Any]:
    """`model.state_dict()`; for a packed model, only its trained parameters."""
    if not is_packed(model):
        found: dict[str, Any] = model.state_dict()
        return found
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_weights(model: Any, state: Mapping[str, Any]) -> None:
    """The inverse of `weights_of`. Raises UsageError, before anything is changed, if the names don't fit."""
    if not is_packed(model):
        model.load_state_dict(state)
        return
    trained = weights_of(model).keys()
    if trained != state.keys():
        name = sorted(trained ^ state.keys())[0]
        where = "lacks" if name in trained else "has"
        raise UsageError(f"the state of what is trained on a packed base {where} {name!r}, against this model")
    Module.load_state_dict(model, state, strict=False)


def base_facts(model: Any, with_head: bool = True) -> dict[str, Any]:
    """What identifies a packed base: its format, and the SHA-256 of all that is not trained.

    A classifier does not use the head of the language model inside it, so that head does not count.
    """
    body, digest = getattr(model, "transformer", model), hashlib.sha256()
    without = (_HEAD,) if body is not model or not with_head else ()
    for path, module in body.named_modules():
        if path in without:
            continue
        if isinstance(module, (PackedLinear, PackedEmbedding)):
            digest.update(path.encode())
            for array in (module.matrix.data, module.matrix.scale):
                digest.update(b"" if array is None else backends.move(array, "numpy").tobytes())
    for name, parameter in body.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode() + backends.move(parameter.data, "numpy").tobytes())
    return {"format": model.packed, "sha256": digest.hexdigest()}


# What is loaded ---------------------------------------------------------------------------------------


def shorten(model: GPT, block_size: int) -> None:
    """Cut the model's block to its first `block_size` positions."""
    block_size, longest = whole_number("training", "block_size", block_size), model.config.block_size
    if block_size > longest:
        raise UsageError(
            f"the model that the run starts from has a block of {longest} tokens and knows no later positions: "
            f"block_size can be shorter, not {block_size}"
        )
    model.wpe.weight = Parameter(model.wpe.weight.data[:block_size].copy())
    model.config = dataclasses.replace(model.config, block_size=block_size)


def packed_facts(state: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """What identifies the packed base of a run with this state; None for a run that has all its weights."""
    facts: Any = state.get("packed_base")
    if facts is None:
        return None
    if not isinstance(facts, dict) or facts.get("format") not in FORMATS or not isinstance(facts.get("sha256"), str):
        raise CheckpointError(f"{where} is damaged: its packed_base names no format, one of {', '.join(FORMATS)}")
    return facts


def packed_base(state: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """The base of a run with this state, and its format; None for a run that has all its weights.

    Raises CheckpointError for a base that can't be found again.
    """
    facts = packed_facts(state, where)
    if facts is None:
        return None
    base = state.get("base_model")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{where} holds an adapter without its base, which was a model without a folder or name: load the base, "
            "add the adapter with tinygpt.nn.add_lora, and resume or read the checkpoint onto it"
        )
    return base, facts["format"]


def on_its_base(
    load_base: Callable[[float], GPT], weights: Weights, state: dict[str, Any], dropout: float | None, where: str,
    classifier: bool,
) -> GPT:  # fmt: skip
    """The model of a checkpoint: its base, which `load_base` loads with this dropout, and what was trained on it.

    classifier: whether the model is inside a classifier, whose head is not read here. Raises CheckpointError.
    """
    config = made_of(GPTConfig.from_dict, state, "model_config", where)
    lora = made_of(LoRA.from_dict, state, "lora", where)
    weights.check_rank(lora.rank)
    try:
        model = load_base(config.dropout if dropout is None else dropout)
    except UsageError as error:
        raise CheckpointError(f"{where} needs its base, the model {state['base_model']!r}, but {error}") from error
    shape = {name: value for name, value in model.config.to_dict().items() if name != "tie_word_embeddings"}
    require_same(f"{where}, for the model {state['base_model']!r},", config.to_dict(), shape, _OWN)
    if config.block_size != model.config.block_size:
        shorten(model, config.block_size)
    insert_lora(model, lora)
    _fill(model, weights, where)
    if is_packed(model) and model.packed == state["packed_base"]["format"]:
        require_base(model, state["packed_base"], where, not classifier)
    return model


def require_base(model: Any, stored: Mapping[str, Any], where: str, with_head: bool = True) -> None:
    """Raise CheckpointError unless the model's packed base is the one that the adapter was trained on."""
    if base_facts(model, with_head) != dict(stored):
        raise CheckpointError(
            f"{where} was trained on other weights than its base has now: restore that model, or start a new run"
        )


def _fill(model: GPT, weights: Weights, where: str | Path) -> None:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained.keys() != weights.place.keys():
        name = sorted(trained.keys() ^ weights.place.keys())[0]
        raise CheckpointError(f"{where} {'lacks' if name in trained else 'has'} {name!r}, against its LoRA settings")
    for name, parameter in trained.items():
        file, stored = weights.place[name]
        if file.arrays[stored].shape != parameter.shape:
            raise CheckpointError(
                f"{where} has {name!r} of shape {file.arrays[stored].shape}, and its base needs {parameter.shape}"
            )
        parameter.data[...] = backends.move(file.read(stored).astype(parameter.dtype), parameter.backend)
        parameter.mark_changed()
