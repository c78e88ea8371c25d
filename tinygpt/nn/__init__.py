"""Modules, their named parameters, and the layers built from them."""

from __future__ import annotations

from .layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, uninitialized
from .module import Module, Parameter

__all__ = ["Dropout", "Embedding", "LayerNorm", "Linear", "Module", "Parameter", "RMSNorm", "uninitialized"]
