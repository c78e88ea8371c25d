"""What the machine is and what it can do: the lines on top of every benchmark, and the limits to compare with."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np

from tinygpt.backends import get


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def fma_peak() -> float | None:
    """Measured float32 multiply-add peak of all threads in FLOP/s; None without the compiled extension."""
    module = get("numpy").extension()
    return None if module is None else module.fma_peak()


def block_rate() -> tuple[float, float] | None:
    """FLOP/s of the matrix product's inner block alone, from the caches, on all threads for 0.3 s: the most that a
    product can reach; and of the peak's loop straight after it. Both are less than the peak, for the processor's clock
    falls while it loads and multiplies at once. None where the products are the BLAS library's."""
    module = get("numpy").extension()
    return None if module is None else module.block_rate()


def matmul_rate(n: int = 1536, trials: int = 7) -> float:
    """The best rate of a square float32 product through NumPy's BLAS, in FLOP/s."""
    a = np.ones((n, n), np.float32)
    out = np.empty_like(a)
    times = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times[1:])


def copy_bandwidth(megabytes: int = 256, trials: int = 7) -> float:
    """Bytes a second of a one-thread copy, read and write counted."""
    source = np.ones(megabytes * 2**20 // 8)
    target = np.empty_like(source)
    times = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times[1:])


def read_bandwidth(megabytes: int = 512, trials: int = 7) -> float | None:
    """Bytes a second that all threads together read from memory; None without the compiled extension."""
    module = get("numpy").extension()
    if module is None:
        return None
    source = np.ones(megabytes * 2**20 // 4, np.float32)
    times = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        module.read_sum(source)
        times.append(time.perf_counter() - start)
    return source.nbytes / min(times[1:])


def headline() -> str:
    """Machine, versions, threads."""
    backend = get("numpy")
    return (
        f"{processor()}, {backend.default_num_threads()} threads; Python {platform.python_version()}, "
        f"{backend.describe()}"
    )
