"""Small models with opinions, for the tests of what is seen inside a model."""

from __future__ import annotations

from typing import Any

import numpy as np

import tinygpt as tg

IDS = [7, 0, 30, 7, 19, 3, 3]


def make_model(dtype: str = "float64", seed: int = 0, **settings: Any) -> tg.GPT:
    """Random weights, none of them special: biases not 0, scales not 1. Dropout, which must not act."""
    sizes: dict[str, Any] = {"vocab_size": 31, "block_size": 12, "n_layer": 3, "n_head": 4, "n_embd": 24}
    model = tg.GPT(tg.GPTConfig(**(sizes | {"dropout": 0.3} | settings)), dtype=dtype)
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        center = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        parameter.data[...] = center + 0.2 * rng.standard_normal(parameter.shape)
    return model


def with_adapter(model: tg.GPT) -> tg.GPT:
    """An adapter on every linear layer, which changes what the model computes."""
    tg.nn.add_lora(model, rank=2, targets="all-linear")  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data[...] = 0.1 * rng.standard_normal(parameter.shape)
    return model


def logits(model: Any, ids: Any = IDS) -> np.ndarray:
    """(T, V), without dropout."""
    with tg.no_grad(), model.evaluating():
        return np.array(model([ids]).data[0])
