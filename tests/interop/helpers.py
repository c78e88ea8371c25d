"""Small GPT-2 directories for the tests of loading and saving."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tinygpt import GPT, GPTConfig

SETTINGS: dict[str, Any] = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12}
WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
INDEX = "model.safetensors.index.json"


def make(seed: int = 0, dtype: str = "float32", **settings: Any) -> GPT:
    """A model all of whose parameters are far from special: biases not 0, scales not 1."""
    model = GPT(GPTConfig(**(SETTINGS | settings)), dtype=dtype)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    return model


def saved(folder: Path, model: GPT | None = None, **options: Any) -> Path:
    (model or make()).save_pretrained(folder, **options)
    return folder


def assert_same_model(found: GPT, expected: GPT) -> None:
    """Equal configurations, and parameters equal in dtype and bit for bit."""
    assert found.config == expected.config
    own = found.state_dict()
    assert own.keys() == expected.state_dict().keys()
    for name, array in expected.state_dict().items():
        assert own[name].dtype == array.dtype, name
        assert own[name].tobytes() == array.tobytes(), name


def change_json(path: Path, **changes: Any) -> None:
    """Set some names of a JSON object; `...` removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray] | None]) -> None:
    """Rewrite the weights, by the library that defines the format, after `change` has had them."""
    arrays = load_file(folder / WEIGHTS)
    save_file(dict(change(arrays) or arrays), folder / WEIGHTS, {"format": "pt"})


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
