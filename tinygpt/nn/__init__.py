"""Modules, their named parameters, and the layers built from them."""

from __future__ import annotations

from .layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, uninitialized
from .lora import LoRA, LoRALinear, add_lora, merge_lora
from .module import Module, Parameter

__all__ = [
    "Dropout", "Embedding", "LayerNorm", "Linear", "LoRA", "LoRALinear", "Module", "Parameter", "RMSNorm", "add_lora",
    "merge_lora", "uninitialized",
]  # fmt: skip
