"""Presets: settings of model and training that belong together, by the name that --preset takes.

The sizes from gpt2-medium on are GPT-2's (Radford et al. 2019, table 2), with its block of 1,024 tokens, and the
learning rates of GPT-3's models of these sizes (Brown et al. 2020, table 2.1). Their steps have 131,072 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Values of `GPTConfig` and `TrainingConfig` that belong together."""

    description: str
    model: dict[str, Any]
    training: dict[str, Any]


SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "bias": False}

PRESETS = {
    "tiny": Preset(
        "nanoGPT's setting for a CPU: minutes",
        SMALL,
        {"batch_size": 12, "steps": 2000, "eval_batches": 20},
    ),
    "fast": Preset(
        "tiny's model, trained by Muon in fewer steps",
        SMALL,
        {
            "batch_size": 12, "steps": 500, "eval_batches": 20, "optimizer": "muon", "lr": 0.02, "adamw_lr": 3e-3,
            "momentum": 0.9, "weight_decay": 0.0, "warmup_steps": 10, "schedule": "wsd", "decay_fraction": 0.5,
            "min_lr": 0.0,
        },
    ),
    "baby": Preset(
        "nanoGPT's setting for a GPU: hours on a CPU",
        {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2, "bias": False},
        {"batch_size": 64, "steps": 5000, "eval_batches": 200},
    ),
    "gpt2": Preset(
        "GPT-2's smallest size, with a short block: days on a CPU",
        {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 256, "dropout": 0.0, "bias": True},
        {
            "batch_size": 4, "gradient_accumulation": 8, "steps": 5000, "lr": 6e-4,
            "warmup_steps": 200, "beta2": 0.95, "eval_batches": 20,
        },
    ),
    **{
        name: Preset(
            f"GPT-2's shape of {size} parameters: days on a GPU",
            {"n_layer": L, "n_head": H, "n_embd": C, "block_size": 1024, "dropout": 0.0, "bias": True},
            {
                "batch_size": B, "gradient_accumulation": 128 // B, "steps": 5000, "lr": lr, "warmup_steps": 200,
                "beta2": 0.95, "eval_batches": 20,
            },
        )
        for name, size, L, H, C, B, lr in (
            ("gpt2-medium", "355M", 24, 16, 1024, 4, 3e-4),
            ("gpt2-large", "774M", 36, 20, 1280, 2, 2.5e-4),
            ("gpt2-xl", "1.6B", 48, 25, 1600, 1, 2e-4),
        )
    },
}  # fmt: skip
