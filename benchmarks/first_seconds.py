"""How long the threads of a new process share a core: the first seconds of matrix products, in many fresh processes.

    python benchmarks/first_seconds.py [--starts 20] [--seconds 4]

When a process starts its threads, the system may run two of them on one core while another is idle, each at half its
speed (`tinygpt/_ext/threads/pool.c` says what is done about it). Each start multiplies matrices that fit the caches for
a few seconds, in slices of about 5 ms. A slice that takes more than 1.5 times the process's median counts as slow. On a
machine that is busy otherwise the figures say nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tinygpt.ops._matmul import matmul_arrays

SIZE = 256
AIM = 0.05  # seconds


def slow_seconds(seconds: float) -> float:
    """Multiply for so many seconds; returns how many of them were in slow slices."""
    a = np.ones((SIZE, SIZE), np.float32)
    slices, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        for _ in range(25):
            matmul_arrays(a, a)
        slices.append(time.perf_counter() - start)
    usual = statistics.median(slices)
    return sum(each for each in slices if each > 1.5 * usual)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20, help="fresh processes (default: 20)")
    parser.add_argument("--seconds", type=float, default=4, help="of products in each (default: 4)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(slow_seconds(options.seconds))
        return
    import machine

    print(machine.headline())
    found = []
    for _ in range(options.starts):
        command = [sys.executable, __file__, "--work", "--seconds", str(options.seconds)]
        found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"seconds at reduced speed in {options.starts} starts of {options.seconds:g} s: "
          f"median {statistics.median(found):.3f}, {min(found):.3f} to {max(found):.3f}")  # fmt: skip
    print(f"- {'met' if max(found) <= AIM else 'not met'}: at most {max(found):.2f} s of a start (aim: {AIM})")


if __name__ == "__main__":
    main()
