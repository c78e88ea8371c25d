"""The processor's limits, measured by a C file that is compiled when a benchmark needs it.

It is compiled like the kernels in use: for their level of vector instructions, with the flags of `setup.py`. The
library is kept under `build/` for the next run. It has its own thread pool, with as many threads as the kernels use.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from tinygpt.backends import get

ROOT = Path(__file__).parents[2]


class BlockRun(ctypes.Structure):
    """`tg_block_run` of peak.c."""

    _fields_ = [("panels", ctypes.c_ssize_t), ("operands", ctypes.c_void_p), ("results", ctypes.c_void_p)]


def fma_peak(trials: int = 20) -> float | None:
    """The peak rate of all threads together, in float32 operations per second: the best of `trials` short runs.

    None if there are no compiled kernels, or if the library cannot be compiled.
    """
    library = loaded()
    if library is None:
        return None
    turns, chunks = 200_000, chunks_of(library)
    return (
        chunks * library.peak_chain_flops(turns) / min(seconds_of_chains(library, turns, chunks) for _ in range(trials))
    )


def block_rate(seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter) -> tuple[float, float] | None:
    """FLOP/s of the matrix product's inner block alone, with operands in the caches, on all threads, which is an upper
    bound for every product; and of the chains of `fma_peak` directly afterwards. Both are below the peak, because the
    processor lowers its clock when it loads and multiplies at the same time.

    None if products use the BLAS library, or if `fma_peak` is None. The figures are medians of 15 turns without a pause
    between them, because the clock takes milliseconds to fall. clock: for one thread, its own time may be measured.
    """
    library = loaded()
    if library is None or not library.peak_has_blocks():
        return None
    turns, chunks, run = 50_000, chunks_of(library), BlockRun()
    if not library.peak_block_open(ctypes.byref(run), chunks):
        raise MemoryError("no memory for a block of a matrix product")
    block, chains = [], []
    for _ in range(15):
        runs, start = 0, clock()
        while clock() < start + seconds / 15:
            library.peak_blocks(ctypes.byref(run), chunks)
            runs += 1
        block.append(runs * chunks * library.peak_block_flops(ctypes.byref(run)) / (clock() - start))
        chains.append(chunks * library.peak_chain_flops(turns) / seconds_of_chains(library, turns, chunks, clock))
    library.peak_block_close(ctypes.byref(run))
    return statistics.median(block), statistics.median(chains)


def read_bandwidth(megabytes: int = 512, trials: int = 7) -> float | None:
    """The rate at which all threads together read from memory, in bytes per second; None if `fma_peak` is None."""
    library = loaded()
    if library is None:
        return None
    source = np.ones(megabytes * 2**20 // 4, np.float32)
    times = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        library.peak_read(source.ctypes.data, source.size)
        times.append(time.perf_counter() - start)
    return source.nbytes / min(times[1:])


def chunks_of(library: ctypes.CDLL) -> int:
    """The number of chunks: four per thread of the kernels."""
    return 4 * library.tg_set_num_threads(get("numpy").get_num_threads())


def seconds_of_chains(
    library: ctypes.CDLL, turns: int, chunks: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    start = clock()
    library.peak_chains(turns, chunks)
    return clock() - start


@functools.cache
def loaded() -> ctypes.CDLL | None:
    """The library, or None if it is not available; prints a line to standard error if compiling it failed."""
    kernels = get("numpy").extension()
    if kernels is None:
        return None
    try:
        library = ctypes.CDLL(str(compiled(kernels.__name__.rpartition(".")[2])))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        print(f"the machine's limits were not measured, as benchmarks/_peak was not compiled: {said}", file=sys.stderr)
        return None
    size, real, pointer = ctypes.c_ssize_t, ctypes.c_double, ctypes.c_void_p
    for name, result, arguments in (
        ("tg_set_num_threads", ctypes.c_int, [ctypes.c_int]),
        ("peak_chains", None, [size, size]),
        ("peak_chain_flops", real, [size]),
        ("peak_has_blocks", ctypes.c_int, []),
        ("peak_block_open", ctypes.c_int, [pointer, size]),
        ("peak_block_close", None, [pointer]),
        ("peak_block_flops", real, [pointer]),
        ("peak_blocks", None, [pointer, size]),
        ("peak_read", ctypes.c_float, [pointer, size]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def compiled(level: str) -> Path:
    """The shared library for a level; compiled unless an earlier run had the same sources and flags."""
    setup = setup_script()
    sources = [Path(__file__).with_name("peak.c"), ROOT / setup.POOL]
    flags = [*setup.OPTIMIZE_FLAGS, *setup.MATH_FLAGS, *setup.accepted(setup.JUMP_FLAGS), *level_flags(setup, level)]
    flags += ["-fPIC", "-shared", "-Wno-unused-function"]
    flags += [f"-I{ROOT / folder}" for folder in setup.include_folders()]
    command = [*setup.compiler(), *flags, *map(str, sources), "-lm"]
    command += ["-ldl", "-lpthread"] * sys.platform.startswith("linux")
    texts = [path.read_bytes() for path in (*sources, *(ROOT / header for header in setup.headers()))]
    name = hashlib.sha256(b"\0".join([platform.machine().encode(), *map(str.encode, command), *texts])).hexdigest()[:16]
    library = ROOT / "build" / "peak" / f"{level}-{name}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        fresh = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(fresh)], check=True, capture_output=True, text=True)
        os.replace(fresh, library)
    return library


def level_flags(setup: ModuleType, level: str) -> list[str]:
    """The compiler's flags for a level; "native" as with TINYGPT_MARCH=native."""
    return ["-march=native", "-mprefer-vector-width=512"] if level == "native" else setup.LEVEL_FLAGS[level]


def setup_script() -> ModuleType:
    """setup.py as a module; importing it builds nothing."""
    spec = importlib.util.spec_from_file_location("tinygpt_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
