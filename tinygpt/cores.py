"""How many threads a process should use: what the environment says, or what the machine and a container allow."""

from __future__ import annotations

import math
import os

MAX_THREADS = 256  # as in _ext/threads/pool.c


def default_num_threads() -> int:
    """How many threads to use: the number set in the environment, or else one per core that this process may use.

    The first of TINYGPT_NUM_THREADS, OPENBLAS_NUM_THREADS and OMP_NUM_THREADS that is set counts.
    """
    wanted = threads_of_environment()
    return max(1, math.ceil(min(len(usable_cores()), cpu_quota()))) if wanted is None else wanted


def threads_of_environment() -> int | None:
    """The number of threads that the environment sets, if any."""
    for variable in ("TINYGPT_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        first = os.environ.get(variable, "").partition(",")[0]
        if first.isdecimal() and int(first) > 0:
            return min(int(first), MAX_THREADS)
    return None


def usable_cores() -> tuple[int, ...]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_quota() -> float:
    """How many CPUs' worth of time a container's limit allows this process; infinity if there is no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
