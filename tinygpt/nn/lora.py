"""LoRA: fine-tuning with a small trainable update alongside each frozen matrix.

    add_lora(model, rank=8, alpha=16)          # to every c_attn; only the updates are trained
    ...                                        # train, generate, evaluate as usual
    merge_lora(model)                          # W + scale * (B A)^T: a plain model again

A linear layer y = x W + b with W (in, out) becomes

    y = x W + b + scale * (dropout(x) A^T) B^T         A (rank, in), B (out, rank), scale = alpha / rank

W and b are frozen: no gradient is computed for them, and the optimizer holds no state for them. B starts at zero, so a
new adapter changes nothing, bit for bit. A starts uniform in +-1/sqrt(in), as in PEFT. Names and shapes are PEFT's:
`h.0.attn.c_attn.lora_A` here is `base_model.model.transformer.h.0.attn.c_attn.lora_A.weight` there
(`tinygpt/interop/peft.py`).

Cost: a full training step computes three products for each matrix, for y, dx and dW. A frozen matrix needs only the
first two, and its input need not be saved for dW. The products with A and B are smaller by factors of rank / out and
rank / in.

A packed base (`GPT.pack`) stays packed: pack first, then `add_lora`, and only the updates are trained. A checkpoint of
such a run holds only the updates (`tinygpt/interop/packed_run.py`).

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1. rslora (scale = alpha /
sqrt(rank)): Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023, section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from .. import backends, ops
from ..checks import from_settings, number, whole_number
from ..errors import DtypeError, UsageError
from ..random import Generator
from ..tensor import Tensor
from .known import described, is_known, known
from .layers import Dropout, Linear
from .module import Module, Parameter, replaced
from .packed import PackedLinear, product_and_bias

_Model = TypeVar("_Model", bound=Module)

ALL_LINEAR = "all-linear"  # PEFT's name for a target that is every linear layer
_SMALLEST_FREE_STREAM = 1 << 40  # RNG stream: the weights of the base model are drawn from the streams below


@dataclass(frozen=True)
class LoRA:
    """The settings of an adapter. Raises UsageError for impossible values.

    targets: names of linear layers. Each matches all layers whose path is this name or ends in a dot and this name:
    "c_attn", "attn.c_proj", "h.0.mlp.c_fc"; or "all-linear".
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("c_attn",)
    rslora: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole_number("add_lora", "rank", self.rank))
        number("add_lora", "alpha", self.alpha, above=0)
        object.__setattr__(self, "dropout", number("add_lora", "dropout", self.dropout, at_least=0, below=1))
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, Sequence) or not targets or not all(isinstance(t, str) and t for t in targets):
            raise DtypeError(f"add_lora: targets must be names of layers, such as ('c_attn',), not {self.targets!r}")
        object.__setattr__(self, "targets", tuple(targets))
        if not isinstance(self.rslora, bool):
            raise DtypeError(f"add_lora: rslora must be True or False, not {self.rslora!r}")

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def matches(self, path: str) -> bool:
        """Whether a target names the linear layer at `path`."""
        return any(target in (path, ALL_LINEAR) or path.endswith(f".{target}") for target in self.targets)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> LoRA:
        """The inverse of `to_dict`. Raises UsageError naming an unknown setting."""
        return from_settings("add_lora", cls, settings)


@known("forward", "product", "update", "plain")
class LoRALinear(Module):
    """A frozen linear layer of any class, and a trainable low-rank update.

    base_layer: computes x (..., in) -> (..., out). lora_A: (rank, in). lora_B: (out, rank).
    """

    def __init__(self, base_layer: Any, lora: LoRA, init: Generator, dropout: Generator | None = None) -> None:
        like, (terms, outputs) = base_layer.matrix.data, base_layer.matrix.weight_shape()
        dtype = like.dtype if like.dtype.kind == "f" else np.dtype(np.float32)  # a packed layer computes in float32
        bound = 1 / math.sqrt(terms)
        A = ((2 * init.uniform((lora.rank, terms)) - 1) * bound).astype(dtype)
        self.base_layer, self.lora = base_layer, lora
        self.lora_A, self.lora_B = Parameter(A), Parameter(np.zeros((outputs, lora.rank), dtype))
        for parameter in (self.lora_A, self.lora_B):
            parameter.data = backends.move(parameter.data, backends.name_of(like))
        self.dropout = Dropout(lora.dropout, dropout)
        self.training = base_layer.training
        self.dropout.training = base_layer.training

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.base_layer(x) + self.update(x)

    def product(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), without `bias`: the caller adds that later."""
        return product_and_bias(self.base_layer, x)[0] + self.update(x)

    @property
    def bias(self) -> Parameter | None:
        """What `product` leaves out: the base layer's bias, unless that can only be called as a whole."""
        return self.base_layer.bias if is_known(self.base_layer, Linear, PackedLinear) else None

    def update(self, x: Tensor) -> Tensor:
        """x (..., in) -> scale * (dropout(x) A^T) B^T, (..., out)."""
        A, B = ops.in_dtype_of(x, self.lora_A, self.lora_B)
        u = ops.linear(self.dropout(x), A.transpose()) * self.lora.scale  # (..., rank)
        return ops.linear(u, B.transpose())

    def plain(self) -> Linear | None:
        """A Linear that computes the same without dropout; None if the base is packed or user-defined.

        Its weight is new; its bias is the base's.
        """
        if not is_known(self.base_layer, Linear):
            return None
        made: Linear = copy.copy(self.base_layer)
        made.weight = Parameter(_merged(made.weight.data, self.lora_A.data, self.lora_B.data, self.lora.scale))
        return made


def _merged(weight: Any, A: Any, B: Any, scale: float) -> Any:
    """W + scale * (B A)^T (in, out), computed in float64 and rounded once."""
    update = A.T.astype(np.float64) @ (scale * B.T.astype(np.float64))  # (in, out)
    update += weight
    return update.astype(weight.dtype)


def add_lora(
    model: _Model,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: Sequence[str] = ("c_attn",),
    *,
    rslora: bool = False,
    seed: int = 0,
) -> _Model:
    """Freeze the model and add a trainable low-rank update to its linear layers. Returns the model.

    rank: of the updates; alpha: their scale is alpha / rank or, with rslora, alpha / sqrt(rank). dropout: on the input
    of the updates. targets: which layers, see `LoRA`. seed: for the initial A, which is not drawn from
    `model.generator`, so the base model's dropout masks stay the same.
    Raises UsageError, and then the model is unchanged.
    """
    return insert_lora(model, LoRA(rank, alpha, dropout, targets, rslora), seed)  # type: ignore[arg-type]


def insert_lora(model: _Model, lora: LoRA, seed: int = 0) -> _Model:
    """`add_lora` with its settings as one object."""
    if lora_of(model) is not None:
        raise UsageError("add_lora: this model has an adapter already: merge it first (merge_lora)")
    paths = _target_paths(model, lora)
    init = Generator(seed, _SMALLEST_FREE_STREAM)
    made = {path: LoRALinear(_at(model, path), lora, init, getattr(model, "generator", None)) for path in paths}
    for parameter in model.parameters():
        parameter.requires_grad, parameter.grad = False, None
    for path, layer in made.items():
        _replace(model, path, layer)
    return model


def linear_paths(model: Module) -> dict[str, tuple[int, int]]:
    """Path -> (in, out) of every linear layer, packed or not, in the model's order."""
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, (Linear, PackedLinear))]
    return {path: module.matrix.weight_shape() for path, module in found}


def _target_paths(model: Any, lora: LoRA) -> list[str]:
    """The paths of the layers to adapt, in the model's order. Raises UsageError unless each target names some."""
    modules = {path: module for path, module in model.named_modules() if path}
    linear = linear_paths(model)
    for target in lora.targets:
        if target == ALL_LINEAR or any(path == target or path.endswith(f".{target}") for path in linear):
            continue
        other = next((p for p in modules if p == target or p.endswith(f".{target}")), None)
        problem = f"there is no layer {target!r}" if other is None else f"{other} is a {type(modules[other]).__name__}"
        names = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in linear)) or "none here"
        raise UsageError(f"add_lora: {problem}, but targets are linear layers of this model: {names}")
    return [path for path in linear if lora.matches(path)]


def merge_lora(model: _Model) -> _Model:
    """Add each update to its weight and remove the adapter: a plain model, all of it trainable. Returns the model.

    The sum is computed in float64 and rounded once, so a weight is within half a unit in the last place of the exact
    sum, and the outputs agree with the unmerged model's to rounding. With B = 0 the weights keep their bits.
    Raises UsageError, and then the model is unchanged: for a packed base, which would have to be rounded again, and for
    a user-defined layer, which may compute with more than its weight.
    """
    layers = lora_layers(model)
    if not layers:
        raise UsageError("merge_lora: this model has no adapter")
    for path, layer in layers.items():
        if isinstance(layer.base_layer, PackedLinear):
            raise UsageError(
                f"merge_lora: {path} is packed, and its sum with the update would have to be rounded again: load the "
                "base model without packing, and merge there"
            )
        if not is_known(layer.base_layer, Linear):
            raise UsageError(
                f"merge_lora: {path} is a {described(layer.base_layer)}, which may compute with more than its weight"
            )
    for path, layer in layers.items():
        _replace(model, path, layer.plain())
    for parameter in model.parameters():
        parameter.requires_grad = True
    return model


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """Path -> layer, for every adapted layer of `model`."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_of(model: Module) -> LoRA | None:
    """The settings of the model's adapter; None if it has none."""
    return next((module.lora for module in model.modules() if isinstance(module, LoRALinear)), None)


def without_lora(model: Any) -> Any:
    """A copy of `model` for inference that shares everything except the adapted layers, which are merged.

    `model` itself if it has no adapter, or one that can't be merged.
    """
    plain = {path: layer.plain() if is_known(layer) else None for path, layer in lora_layers(model).items()}
    return replaced(model, plain) if plain and None not in plain.values() else model


def merged_state(state: Mapping[str, Any], lora: LoRA) -> dict[str, Any]:
    """A `state_dict` with an adapter -> that of the merged model."""
    merged = {}
    for name, array in state.items():
        path, _, kind = name.rpartition(".base_layer.")
        if path and kind == "weight":
            array = _merged(array, state[f"{path}.lora_A"], state[f"{path}.lora_B"], lora.scale)
        if not name.endswith((".lora_A", ".lora_B")):
            merged[f"{path}.{kind}" if path else name] = array
    return merged


def _at(model: Any, path: str) -> Any:
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def _replace(model: Any, path: str, layer: Any) -> None:
    """Replace the module at `path` by `layer`."""
    owner, _, name = path.rpartition(".")
    place = _at(model, owner) if owner else model
    if name.isdigit():
        place[int(name)] = layer
    else:
        setattr(place, name, layer)
