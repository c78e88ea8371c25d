"""How much of the processor's peak a run uses: MFU, model FLOPs utilization.

MFU is the number of operations per second that the model's matrix products need, divided by the peak (Chowdhery et al.,
PaLM, 2022, appendix B). All other work counts only as time. PaLM takes the vendor's figure for the peak; here it is
measured with a matrix product on the threads of this run, so that it is known for any processor. It is the most that
the run's own products could reach.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from ... import backends
from ...graph import no_grad
from ...ops import cast, matmul
from ...tensor import Tensor

_SIZES = {"numpy": 768, "cupy": 8192}


def flops_per_token(model: Any, T: int) -> float | None:
    """Operations per token of a training step on texts of T tokens: `GPT.flops_per_token`, less what freezing saves.

    None if the model does not define it. A T above the block size counts as the block size.
    """
    body = getattr(model, "transformer", model)  # of a classifier
    if not hasattr(body, "flops_per_token"):
        return None
    frozen = sum(p.size for p in body.parameters() if not p.requires_grad)
    return float(body.flops_per_token(max(1, min(T, model.config.block_size))) - 2 * frozen)


@functools.cache
def measured_peak(backend: str, dtype: str, threads: int, seconds: float = 0.2) -> float:
    """Operations per second of the fastest of several matrix products: as many as fit into `seconds`, at least two.

    threads: the number in use now. Measured once per process.
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
