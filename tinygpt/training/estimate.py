"""How much a run computes, and how much the processor could: MFU, the share of its peak.

MFU is Chowdhery et al.'s model FLOPs utilization (PaLM, 2022, appendix B): the operations that the model's matrix
products need for the tokens of a second, by the peak. Whatever else is computed counts as time alone. Their peak is the
one that the maker states; ours is measured by a product of our own, so that it is known for any processor, with the
threads that this run has. It is the most that the run's own products could reach.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from .. import backends
from ..graph import no_grad
from ..ops import cast, matmul
from ..tensor import Tensor

_SIZES = {"numpy": 768, "cupy": 8192}


def flops_per_token(model: Any, T: int) -> float | None:
    """Operations of a training step for a token in a text of T: `GPT.flops_per_token`, without what freezing saves.

    None for a model that does not tell them. T: at most the block counts.
    """
    body = getattr(model, "transformer", model)  # of a classifier
    if not hasattr(body, "flops_per_token"):
        return None
    frozen = sum(p.size for p in body.parameters() if not p.requires_grad)
    return float(body.flops_per_token(max(1, min(T, model.config.block_size))) - 2 * frozen)


@functools.cache
def measured_peak(backend: str, dtype: str, threads: int, seconds: float = 0.2) -> float:
    """Operations a second of the fastest of the matrix products that `seconds` are enough for, at least two.

    threads: those in use now. Measured once in a process.
    """
    size = _SIZES[backend]
    host = np.full((size, size), 1e-3, np.float32)
    a = Tensor(backends.move(host, backend))
    if dtype != "float32":
        a = cast(a, dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    with no_grad():
        for number in range(1000):
            begin = time.perf_counter()
            product = matmul(a, a)
            product.data[:1, :1].tolist()  # waits for a GPU
            now = time.perf_counter()
            if number:  # the first one starts threads and compiles
                best = min(best, now - begin)
            if number and now > end:
                break
    return 2.0 * size**3 / best
