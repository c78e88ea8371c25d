"""Layers and models of a user's own, and the changes that put each into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import log_softmax, make
from tinygpt import GPT, nn
from tinygpt.gpt import MLP, Attention, Block
from tinygpt.nn.lora import lora_layers

PROMPT = np.array([[1, 2, 3], [4, 5, 6]])


class Doubled(nn.Linear):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2.0


class WithParameter(nn.Linear):
    """As an adapter has it: a learned part beside the weights."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) + self.shift


class OwnMLP(MLP):
    def forward(self, h: Any) -> Any:
        return super().forward(h) * 0.5


class OwnAttention(Attention):
    def forward(self, h: Any) -> Any:
        return super().forward(h) * 2.0


class Around(nn.Module):
    """No subclass of anything: another module around the one that was there."""

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner

    def forward(self, h: Any) -> Any:
        return self.inner(h) * 0.5


class OwnNorm(nn.LayerNorm):
    def forward(self, x: Any) -> Any:
        return x * self.weight


class OwnEmbedding(nn.Embedding):
    def forward(self, ids: Any) -> Any:
        return super().forward(ids) * 2.0


class OwnHead(nn.Embedding):
    def project(self, h: Any) -> Any:
        return super().project(h) * 0.5


class OwnBlock(Block):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 0.5


class Shifted(MLP):
    """It looks at the token before: what an MLP has no need to do, and a cache that passed it over would get wrong."""

    def forward(self, h: Any) -> Any:
        before = tg.ops.concatenate([h[:, :1] * 0.0, h[:, :-1]], axis=1)
        return super().forward(h + before)


# Layers that say how they go on with a text.


class Positionwise(Around):
    positionwise = True


class PositionwiseLinear(Doubled):
    positionwise = True


class PositionwiseNorm(OwnNorm):
    positionwise = True


class PositionwiseHead(OwnHead):
    positionwise = True


class AttentionWithCache(Attention):
    def forward(self, h: Any, cache: Any = None) -> Any:
        return super().forward(h, cache) * 2.0


class BlockWithCache(Block):
    def forward(self, x: Any, cache: Any = None) -> Any:
        return super().forward(x, cache) * np.linspace(0.5, 1.5, 16)


class HiddenWithCache(GPT):
    def hidden(self, idx: Any, cache: Any = None) -> Any:
        return super().hidden(idx, cache) * 0.5


class HalfTheChannels(nn.Dropout):
    """Not a dropout at all."""

    positionwise = True

    def forward(self, x: Any) -> Any:
        return x * 0.5


class OwnModelHead(GPT):
    def head(self, h: Any) -> Any:
        return super().head(h) * 0.5


class OwnForward(GPT):
    def forward(self, idx: Any) -> Any:
        return super().forward(idx) * 0.5


class OwnHidden(GPT):
    def hidden(self, idx: Any) -> Any:
        return super().hidden(idx) * 0.5


def of_class(cls: type, *path: Any) -> Callable[[GPT], None]:
    def change(model: Any) -> None:
        for part in path:
            model = model[part] if isinstance(part, int) else getattr(model, part)
        model.__class__ = cls

    return change


def with_parameter(model: GPT) -> None:
    of_class(WithParameter, "h", 1, "mlp", "c_fc")(model)
    model.h[1].mlp.c_fc.shift = nn.Parameter(np.linspace(-1, 1, 64))


def patched(model: GPT) -> None:
    layer = model.h[0].attn.c_attn
    layer.forward = lambda x: nn.Linear.forward(layer, x) * 2.0


def untied(model: GPT) -> None:
    model.lm_head = nn.Linear(16, 13, std=0.5, dtype=np.float64)
    model.head = model.lm_head


def around(model: GPT) -> None:
    model.h[0].mlp = Around(model.h[0].mlp)


def setting(value: Any, name: str, *path: str) -> Callable[[GPT], None]:
    def change(model: GPT) -> None:
        place: Any = model.h[1]
        for part in path:
            place = getattr(place, part)
        setattr(place, name, value)

    return change


def with_lora(model: GPT, **settings: Any) -> None:
    """Not a user's own layers, but layers that stand where others were, too."""
    for layer in lora_layers(nn.add_lora(model, **settings)).values():
        layer.lora_B.data[...] = np.random.default_rng(0).standard_normal(layer.lora_B.shape)


def lora_beside_ones_own(model: GPT) -> None:
    of_class(Doubled, "h", 1, "mlp", "c_proj")(model)
    with_lora(model, targets=("c_proj",))


CHANGES: dict[str, Callable[[GPT], None]] = {
    "a Linear for queries": of_class(Doubled, "h", 0, "attn", "c_attn"),
    "a Linear after attention": of_class(Doubled, "h", 0, "attn", "c_proj"),
    "the first Linear of an MLP": of_class(Doubled, "h", 1, "mlp", "c_fc"),
    "the second Linear of an MLP": of_class(Doubled, "h", 1, "mlp", "c_proj"),
    "a Linear with a parameter": with_parameter,
    "an MLP": of_class(OwnMLP, "h", 1, "mlp"),
    "an Attention": of_class(OwnAttention, "h", 1, "attn"),
    "a module around an MLP": around,
    "ln_1": of_class(OwnNorm, "h", 1, "ln_1"),
    "ln_2": of_class(OwnNorm, "h", 0, "ln_2"),
    "ln_f": of_class(OwnNorm, "ln_f"),
    "the token embedding": of_class(OwnEmbedding, "wte"),
    "the token embedding as the head": of_class(OwnHead, "wte"),
    "the position embedding": of_class(OwnEmbedding, "wpe"),
    "a Block": of_class(OwnBlock, "h", 0),
    "an instance's forward": patched,
    "an untied head": untied,
    "the model's head": of_class(OwnModelHead),
    "the model's forward": of_class(OwnForward),
    "the model's hidden": of_class(OwnHidden),
    "the number of heads": setting(4, "n_head", "attn"),
    "the epsilon of one norm": setting(1.0, "eps", "ln_2"),
    "an MLP that mixes positions": of_class(Shifted, "h", 0, "mlp"),
    "a positionwise module around an MLP": lambda model: setattr(model.h[0], "mlp", Positionwise(model.h[0].mlp)),
    "a positionwise Linear": of_class(PositionwiseLinear, "h", 1, "mlp", "c_fc"),
    "a positionwise ln_1": of_class(PositionwiseNorm, "h", 1, "ln_1"),
    "a positionwise ln_f": of_class(PositionwiseNorm, "ln_f"),
    "a positionwise head": of_class(PositionwiseHead, "wte"),
    "a positionwise dropout": of_class(HalfTheChannels, "h", 1, "dropout"),
    "an Attention with a cache": of_class(AttentionWithCache, "h", 0, "attn"),
    "the last Attention with a cache": of_class(AttentionWithCache, "h", 1, "attn"),
    "a Block with a cache": of_class(BlockWithCache, "h", 0),
    "the last Block with a cache": of_class(BlockWithCache, "h", 1),
    "a hidden with a cache": of_class(HiddenWithCache),
    "an adapter": with_lora,
    "an adapter everywhere, with dropout": lambda model: with_lora(model, targets="all-linear", dropout=0.5),
    "an adapter beside a Linear of one's own": lora_beside_ones_own,
    "a block fewer": lambda model: model.h.pop() and None,
}
every_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


def changed(change: Callable[[GPT], None]) -> GPT:
    model = make().eval()
    plain = model(PROMPT).data
    change(model)
    assert np.abs(model(PROMPT).data - plain).max() > 0.01  # else nothing below could fail
    return model


def expected(model: GPT, ids: np.ndarray) -> np.ndarray:
    """The log-probability of each token of ids (T,) after the first, from `forward` over the last `block` before it."""
    block = model.config.block_size
    logits = [model(ids[None, max(0, end - block) : end]).data[0, -1] for end in range(1, len(ids))]
    return log_softmax(np.stack(logits))[np.arange(len(ids) - 1), ids[1:]]
