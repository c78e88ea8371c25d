"""The machine's description, printed by every benchmark, and its limits to compare with."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import numpy as np
from _peak import block_rate, fma_peak, read_bandwidth

from tinygpt.backends import get
from tinygpt.backends.numpy import level

__all__ = [
    "PEERS_AT_AVX2", "block_rate", "copy_bandwidth", "environment", "fma_peak", "headline", "level", "levels",
    "matmul_rate", "processor", "read_bandwidth",
]  # fmt: skip


# What holds PyTorch's own kernels, oneDNN and MKL to AVX2.
PEERS_AT_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def levels() -> list[str]:
    """The levels at which to compare with others: the best one here, and AVX2, the best that most machines have."""
    return ["avx512", "avx2"] if level() == "avx512" else [level()]


def environment(level: str) -> dict[str, str]:
    """The variables under which a benchmark compares at this level: at AVX2 they hold us to it, and PyTorch too."""
    return dict(os.environ) | (PEERS_AT_AVX2 | {"TINYGPT_LEVEL": level} if level == "avx2" else {})


def processor() -> str:
    """The processor's name, as reported by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def matmul_rate(n: int = 1536, trials: int = 7) -> float:
    """The best rate of a square float32 matrix product with NumPy's BLAS, in FLOP/s."""
    a = np.ones((n, n), np.float32)
    out = np.empty_like(a)
    times = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times[1:])


def copy_bandwidth(megabytes: int = 256, trials: int = 7) -> float:
    """Bytes per second of a copy on one thread, counting reads and writes."""
    source = np.ones(megabytes * 2**20 // 8)
    target = np.empty_like(source)
    times = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times[1:])


def headline() -> str:
    """The machine, the number of threads and the versions, in one line."""
    backend = get("numpy")
    return (
        f"{processor()}, {backend.default_num_threads()} threads; Python {platform.python_version()}, "
        f"{backend.describe()}"
    )
