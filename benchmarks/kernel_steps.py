"""How a kernel is made fast: the backward pass of GELU, from NumPy to vector instructions, measured at each step.

    python benchmarks/kernel_steps.py [--size 1048576] [--rounds 30]

The steps take turns, and of each the fastest round counts, in nanoseconds of processor time per element on one thread.
Needs gcc or clang for the steps in C (`kernel_steps.c`). `error` is the largest difference from the same formula in
float64. docs/kernel.md discusses a run.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TINYGPT_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from machine import copy_bandwidth, headline

from tinygpt.backends import get

SOURCE = Path(__file__).with_suffix(".c")
BLOCK = 16384  # elements: ten arrays of them fit into a level-2 cache
C, A = math.sqrt(2 / math.pi), 0.044715
# name: compiler options, and the function of kernel_steps.c
COMPILED = {
    "C, with expf": (["-O2"], "plain"),
    "C, own exp, one by one": (["-O2", "-msse4.1", "-fno-tree-vectorize"], "inlined"),
    "C, own exp, vectors of 4": (["-O3", "-msse4.1", "-ffast-math"], "inlined"),
    "C, own exp, vectors of 8": (["-O3", "-ffast-math", "-mavx2", "-mfma"], "inlined"),
    "C, own exp, vectors of 16": (
        ["-O3", "-ffast-math", "-mavx512f", "-mfma", "-mprefer-vector-width=512"],
        "inlined",
    ),
}
NEEDS = {"C, own exp, vectors of 8": "avx2", "C, own exp, vectors of 16": "avx512"}
Step = Callable[[np.ndarray, np.ndarray, np.ndarray], object]


def as_written(dy: np.ndarray, x: np.ndarray, dx: np.ndarray) -> None:
    """The formula, a line for each piece of it: every operation is a pass over memory and makes a new array."""
    square = x * x
    u = C * x * (1 + A * square)
    t = np.exp(-2 * np.abs(u))
    r = 1 / (1 + t)
    s = np.where(x < 0, t, 1) * r
    dx[:] = dy * (s + x * (2 * (t * r * r) * (C * (1 + 3 * A * square))))


def in_blocks(dy: np.ndarray, x: np.ndarray, dx: np.ndarray) -> None:
    """The same, block by block: what one line writes, the next finds in the cache."""
    for first in range(0, len(x), BLOCK):
        part = slice(first, first + BLOCK)
        as_written(dy[part], x[part], dx[part])


def compiled(folder: Path, options: list[str], name: str) -> Step:
    """A function of kernel_steps.c, compiled with these options."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or sys.exit("the steps in C need gcc or clang")
    library = folder / f"steps{len(list(folder.iterdir()))}.so"
    subprocess.run([compiler, *options, "-shared", "-fPIC", str(SOURCE), "-o", str(library), "-lm"], check=True)
    function = getattr(ctypes.CDLL(str(library)), name)
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t]
    return lambda dy, x, dx: function(dy.ctypes.data, x.ctypes.data, dx.ctypes.data, len(x))


def steps(folder: Path) -> dict[str, Step]:
    here: Sequence[str] = ()  # levels of vector instructions; which of them the processor has, compiled code finds out
    if get("numpy").extension() is not None:
        here = importlib.import_module("tinygpt._ext.levels").supported()
    found: dict[str, Step] = {"NumPy, as written": as_written, "NumPy, in blocks": in_blocks}
    for name, (options, function) in COMPILED.items():
        if name not in NEEDS or NEEDS[name] in here:
            found[name] = compiled(folder, options, function)
    if get("numpy").extension() is not None:
        kernel = importlib.import_module("tinygpt.ops.gelu").gelu_backward  # tinygpt.ops.gelu is the public function
        found["tinygpt's kernel"] = kernel  # its third argument is memory for the result
    return found


def measure(found: dict[str, Step], size: int, rounds: int) -> list[tuple[str, float, float]]:
    """(name, nanoseconds per element, error) of each step."""
    rng = np.random.default_rng(0)
    dy, x = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
    exact, dx = np.empty(size), np.empty_like(x)
    as_written(dy.astype(np.float64), x.astype(np.float64), exact)
    best, errors = dict.fromkeys(found, math.inf), {}
    for _ in range(rounds):
        for name, step in found.items():
            start = time.process_time_ns()
            step(dy, x, dx)
            best[name] = min(best[name], (time.process_time_ns() - start) / size)
            errors[name] = float(np.abs(dx - exact).max())
    return [(name, best[name], errors[name]) for name in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2**20, help="elements")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if min(options.size, options.rounds) < 1:
        parser.error("--size and --rounds must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        results = measure(steps(Path(folder)), options.size, options.rounds)
    first = results[0][1]
    print(headline())
    print(f"{options.size:,} elements, the fastest of {options.rounds} rounds\n")
    print("| step | ns per element | times faster | error |\n|---|---|---|---|")
    for name, nanoseconds, error in results:
        print(f"| {name} | {nanoseconds:.2f} | {first / nanoseconds:.1f} | {error:.0e} |")
    fastest = min(nanoseconds for _, nanoseconds, _ in results)
    print(f"\nThe fastest step reads 8 bytes and writes 4 per element: {12 / fastest:.1f} GB/s; ", end="")
    print(f"a copy, which does nothing else: {copy_bandwidth(64) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
