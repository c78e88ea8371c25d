"""The machine's description, printed by every benchmark, and its limits to compare with."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _peak import block_rate, fma_peak, read_bandwidth

from tinygpt.backends import get
from tinygpt.backends.numpy import blas_library, level

__all__ = [
    "PEERS_AT_AVX2", "block_rate", "copy_bandwidth", "environment", "fma_peak", "headline", "level", "levels",
    "matmul_rate", "peers", "processor", "read_bandwidth", "verdict",
]  # fmt: skip


# What holds PyTorch's own kernels, oneDNN, MKL and NumPy's OpenBLAS to AVX2; `peers` checks that it took. llama.cpp has
# no such switch: the variable LLAMA_AT_AVX2 may name the folder of a library built without AVX-512 (libllama.so).
PEERS_AT_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}  # fmt: skip


def levels() -> list[str]:
    """The levels at which to compare with others: the best one here, and AVX2, the best that most machines have."""
    return ["avx512", "avx2"] if level() == "avx512" else [level()]


def environment(level: str) -> dict[str, str]:
    """The variables under which a benchmark compares at this level: at AVX2 they hold us to it, and the peers too."""
    if level != "avx2":
        return dict(os.environ)
    library = os.environ.get("LLAMA_AT_AVX2")
    llama = {"LLAMA_CPP_LIB_PATH": library} if library else {}
    return dict(os.environ) | PEERS_AT_AVX2 | llama | {"TINYGPT_LEVEL": level}


# PyTorch says what its own kernels use, MKL and oneDNN when they first multiply.
TORCH_TELLS = """
import torch
print("PyTorch", torch.backends.cpu.get_cpu_capability(), flush=True)
a = torch.ones(64, 64)
with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
    torch.mm(a, a)
a.to_mkldnn()
"""
WIDER_THAN_AVX2 = re.compile(r"AVX-?512|SkylakeX|Cooperlake|Sapphire", re.IGNORECASE)


def instructions() -> list[str]:
    """Those that NumPy's OpenBLAS and, where it is installed, PyTorch use, in their own words."""
    said = []
    if (corename := getattr(ctypes.CDLL(blas_library()), "scipy_openblas_get_corename64_", None)) is not None:
        corename.restype = ctypes.c_char_p
        said.append(f"OpenBLAS {corename().decode()}")
    if importlib.util.find_spec("torch"):
        command, variables = [sys.executable, "-c", TORCH_TELLS], dict(os.environ) | {"ONEDNN_VERBOSE": "1"}
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout
        said += re.findall(r"^PyTorch \S+$", told, re.MULTILINE)
        said += [f"MKL {words}" for words in re.findall(r"architecture (.*?)(?: enabled processors)?, \w+ ", told)[:1]]
        said += [f"oneDNN {words}" for words in re.findall(r"info,cpu,isa:(.*)", told)[:1]]
    return said


def peers() -> str:
    """`instructions` in a line. Exits if we are held to AVX2 and a peer is not: the comparison would mean nothing."""
    said = instructions()
    if level() == "avx2" and (wider := [words for words in said if WIDER_THAN_AVX2.search(words)]):
        settings = " ".join(f"{name}={value}" for name, value in PEERS_AT_AVX2.items())
        raise SystemExit(f"held to AVX2, but not {', '.join(wider)}: set {settings}")
    return "beside " + ("; ".join(said) or "libraries that don't say what they use")


def verdict(met: bool, what: str, aim: str, floor: str) -> str:
    """A target, met or not, and what bounds it."""
    return f"- {'met' if met else 'not met'}: {what} (aim: {aim}); {floor}"


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
