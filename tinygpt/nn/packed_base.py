"""A packed model as the frozen base of an adapter: the state of such a model is that of the trained parameters alone.

Its matrices can't be trained and its other weights are frozen, so a checkpoint of the whole model would repeat, at each
save, what the base's own file holds. The state of a run is therefore only the adapter (and a classifier's head),
together with a hash that identifies the base that they were trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .. import backends
from ..errors import UsageError
from .module import Module
from .packed import PackedEmbedding, PackedLinear

_HEAD = "lm_head"


def is_packed(model: Any) -> bool:
    """Whether the model's matrices are packed."""
    return bool(getattr(model, "packed", None))


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
        raise UsageError(f"the state of what is trained beside a packed base {where} {name!r}, against this model")
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
