"""How long the threads of a new process share a core: the first seconds of matrix products, in many fresh processes.

    python benchmarks/first_seconds.py [--starts 20] [--seconds 4]

When a process starts its threads, the system may run two of them on one core while another is idle, each at half its
speed (`tinygpt/_ext/threads/pool.c` says what is done about it). Each start multiplies matrices that fit the caches for
a few seconds, in slices of about 5 ms. A slice that takes more than 1.5 times the process's median counts as slow. On a
machine that is busy otherwise the figures say nothing.

On Linux it also says where those seconds went: how long the threads of the process were ready, but had to wait for a
core (/proc/self/task/*/schedstat), and how long the hypervisor of a virtual machine kept a core (steal, /proc/stat). A
thread that waits while nothing is stolen shares its core with another thread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tinygpt.ops._matmul import matmul_arrays

SIZE = 256
AIM = 0.05  # seconds


class Slow(NamedTuple):
    """seconds: in slow slices; in these, the seconds that all threads together waited for a core, and those stolen."""

    seconds: float
    waited: float
    stolen: float


def waited() -> float:
    """Seconds for which the threads of this process were ready but not running, so far; 0 where nothing tells."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):
            total += int(path.read_text().split()[1])
    return total / 1e9


def stolen() -> float:
    """Seconds for which the cores were taken by the hypervisor, so far; 0 where nothing tells."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def slow_slices(seconds: float) -> Slow:
    """Multiply for so many seconds; returns what slow slices there were."""
    a = np.ones((SIZE, SIZE), np.float32)
    slices, end = [], time.perf_counter() + seconds
    before = waited(), stolen()
    while (start := time.perf_counter()) < end:
        for _ in range(25):
            matmul_arrays(a, a)
        took = time.perf_counter() - start
        after = waited(), stolen()
        slices.append(Slow(took, after[0] - before[0], after[1] - before[1]))
        before = after
    usual = statistics.median(one.seconds for one in slices)
    slow = [one for one in slices if one.seconds > 1.5 * usual]
    return Slow(*(sum(column) for column in zip(*slow, strict=True))) if slow else Slow(0.0, 0.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20, help="fresh processes (default: 20)")
    parser.add_argument("--seconds", type=float, default=4, help="of products in each (default: 4)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(*slow_slices(options.seconds))
        return
    import machine
    from quiet import quietly

    print(machine.headline())
    command = [sys.executable, __file__, "--work", "--seconds", str(options.seconds)]
    run = partial(subprocess.run, command, check=True, capture_output=True, text=True)
    found = [Slow(*map(float, quietly(run).stdout.split())) for _ in range(options.starts)]
    seconds = [one.seconds for one in found]
    print(f"seconds at reduced speed in {options.starts} starts of {options.seconds:g} s: "
          f"median {statistics.median(seconds):.3f}, {min(seconds):.3f} to {max(seconds):.3f}")  # fmt: skip
    total = Slow(*(sum(column) for column in zip(*found, strict=True)))
    print(f"of {total.seconds:.2f} s in all starts: threads waited for a core {total.waited:.2f} s, cores were stolen "
          f"{total.stolen:.2f} s; in the slowest start {_words(max(found))}")  # fmt: skip
    words = f"at most {max(seconds):.2f} s of a start"
    print(machine.verdict(max(seconds) <= AIM, words, str(AIM), "at least 0, with every thread on a core of its own"))


def _words(one: Slow) -> str:
    return f"{one.seconds:.2f} s: waited {one.waited:.2f}, stolen {one.stolen:.2f}"


if __name__ == "__main__":
    main()
