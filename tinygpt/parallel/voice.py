"""Only process 0 speaks: what the others write to the screen goes nowhere, or to separate files.

The file descriptors are redirected, not only Python's streams, so that libraries and warnings are silent too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import UsageError
from ..files import explain_os_errors, folder_made

_silent = False


def is_silent() -> bool:
    """Whether this process no longer writes to the screen, so nothing has to be hidden."""
    return _silent


class Voice:
    """The screen of this process. `cry` reaches it even if everything else is redirected.

    mistake: why the lines of this process can't be written to its log, and are dropped; else empty.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.mistake = rank, ""
        self._screen = os.dup(2)

    def cry(self, words: str) -> None:
        """Write a line to the screen, even if everything else is redirected."""
        with contextlib.suppress(OSError):
            os.write(self._screen, f"{words}\n".encode(errors="replace"))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._screen)


@contextlib.contextmanager
def speaking(rank: int, logs: str | None = None) -> Iterator[Voice]:
    """Inside the block only process 0 writes to the screen. logs: a folder for the lines of the others, rank-1.log and
    so on; None drops them. Where one can't be written the voice says why: an error here would leave the others
    waiting."""
    global _silent
    voice = Voice(rank)
    if rank == 0:
        try:
            yield voice
        finally:
            voice.close()
        return
    try:
        target = _target(rank, logs)
    except UsageError as error:
        target, voice.mistake = _target(rank, None), str(error)
    kept = [os.dup(1), os.dup(2)]
    _flush()
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    os.close(target)
    _silent = True
    try:
        yield voice
    finally:
        _flush()
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        _silent = False
        voice.close()


def _target(rank: int, logs: str | None) -> int:
    if logs is None:
        return os.open(os.devnull, os.O_WRONLY)
    path = folder_made(Path(logs)) / f"rank-{rank}.log"
    with explain_os_errors("write", path):
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    return target


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
