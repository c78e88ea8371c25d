"""Modules, their named parameters, and the layers built from them."""

from __future__ import annotations

from .containers import GELU, ModuleList, ReLU, Sequential
from .layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, uninitialized
from .lora import LoRA, LoRALinear, add_lora, merge_lora
from .module import Module, Parameter
from .recompute import recompute

__all__ = [
    "GELU", "Dropout", "Embedding", "LayerNorm", "Linear", "LoRA", "LoRALinear", "Module", "ModuleList", "Parameter",
    "RMSNorm", "ReLU", "Sequential", "add_lora", "merge_lora", "recompute", "uninitialized",
]  # fmt: skip
