"""Memory that processes share: it is theirs alone, it is given back, and where there is none, sums go by messages.
And the pages of the memory that each has for itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.parallel.together import needs_mpi, together
from tinygpt.parallel import pages
from tinygpt.parallel.shared import opened


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared on Linux only")
def test_only_the_file_of_this_name_is_opened() -> None:
    """In a container the process of this number may be another's, with another file of this number."""
    mine = os.memfd_create("tinygpt-abc")
    path = f"/proc/{os.getpid()}/fd/{mine}"
    try:
        os.close(opened(path, "tinygpt-abc"))
        with pytest.raises(FileNotFoundError):
            opened(path, "tinygpt-abd")
    finally:
        os.close(mine)
    with pytest.raises(FileNotFoundError):
        opened(path, "tinygpt-abc")


@needs_mpi
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="memory is shared on Linux only")
@pytest.mark.parametrize("processes", [2, 3])
def test_shared_memory(processes: int) -> None:
    together(processes, "-m", "tests.parallel.roles", "shared_memory")


def test_no_huge_pages_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems, other C libraries, no memory."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert not pages.use_huge_pages()

    class Libc:
        class Function:
            def __init__(self, result: int) -> None:
                self.result = result

            def __call__(self, *_: int) -> int:
                return self.result

        malloc, free, madvise = Function(0), Function(0), Function(0)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pages.ctypes, "CDLL", lambda _: Libc())
    assert not pages.use_huge_pages()  # no mallopt
    Libc.mallopt = Libc.Function(1)  # type: ignore[attr-defined]
    assert not pages.use_huge_pages()  # malloc has nothing
    Libc.malloc = Libc.Function(1 << 30)
    assert pages.use_huge_pages()
    Libc.madvise = Libc.Function(-1)
    assert not pages.use_huge_pages()


@needs_mpi
@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="the system has no huge pages to ask for"
)
def test_huge_pages() -> None:
    together(2, "-m", "tests.parallel.roles", "huge_pages")
