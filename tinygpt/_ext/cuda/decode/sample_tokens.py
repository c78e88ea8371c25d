"""Launches sample_tokens.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....typing import Array
from .. import MAX_THREADS, WARP, Device, ceil_div, launcher, real_of


def expressions(real: str) -> list[str]:
    """Refuse float64, which has more places than the kernel searches."""
    return [] if real == "double" else [f"sample_tokens<{real}>"]


@launcher
def sample_tokens(
    device: Device, logits: Array, number: Array, size: int, temperature: float, top_k: int, top_p: float
) -> Any:
    """logits (R, V), number (R,) -> (R,) int64: see tinygpt.ops.sample_tokens."""
    R, V = logits.shape
    if logits.dtype == np.float64:
        return NotImplemented
    weights, ids = device.empty((R, V), np.float64), device.empty((R,), np.int64)
    k = int(top_k) if 0 < top_k < size else 0
    arguments = (logits, number, weights, ids, V, int(size), float(temperature), k, float(top_p))
    real, threads = real_of(logits), min(MAX_THREADS, ceil_div(size, WARP) * WARP)
    device.launch("sample_tokens", f"sample_tokens<{real}>", real, (R,), (threads,), arguments, 0)
    return ids
