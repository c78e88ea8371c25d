"""Huge pages for the arrays of a process that has only a part of each batch.

NumPy asks the system for huge pages (2 MB, not 4 KB) for arrays of 4 MB and more. Each of N processes has 1 / N of
the rows, so its arrays are smaller than those of one process, and many fall below that. The processor then looks up
more addresses: a step of the preset `baby` on 8 of 16 rows takes 0.8% more of its time.

So here the heap, from which arrays below 32 MB come, is made to grow once, by more than it will need for a while, and
the system is asked for huge pages for all of it. Memory that nobody has written to takes no room. Only the processes of
a run that a launcher started do this; others may do many things, and are left alone.
"""

from __future__ import annotations

import ctypes
import sys

AHEAD = 512 << 20  # bytes by which the heap grows
_PAGE = 2 << 20
_TRIM_THRESHOLD, _MMAP_MAX, _HUGE = -1, -4, 14  # glibc's M_TRIM_THRESHOLD, M_MMAP_MAX; Linux's MADV_HUGEPAGE


def use_huge_pages() -> bool:
    """Ask for huge pages for the next arrays of this process. Returns whether it is possible: on Linux, with glibc."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(_TRIM_THRESHOLD, 1 << 30)  # as the compiled kernels have it: freed memory stays in the heap
    libc.mallopt(_MMAP_MAX, 0)  # the next block comes from the heap, however large
    block = libc.malloc(AHEAD)
    libc.mallopt(_MMAP_MAX, 1 << 16)  # the default
    if not block:
        return False
    first = -(-block // _PAGE) * _PAGE
    asked: int = libc.madvise(first, (block + AHEAD - first) // _PAGE * _PAGE, _HUGE)
    libc.free(block)
    return asked == 0
