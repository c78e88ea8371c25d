"""A lock that dies with its process: the operating system gives it back, whatever ends the process.

The file that stands for it holds the number of the process and the name of the machine, for a sentence to whoever
finds it locked. The file says nothing by being there: a lock is never stale.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from pathlib import Path

_TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_AT = 1 << 20  # Windows locks bytes, and nobody else can read those: not the ones that say who has it


class NoLocksError(OSError):
    """The file system of this folder has no locks."""


class Lock:
    """One at a time, of all processes on all machines that the file system knows of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Whether it is ours now. Raises NoLocksError, and OSError where the file can't be made."""
        while True:
            descriptor = self._open()
            try:
                if not _lock(descriptor):
                    os.close(descriptor)
                    return False
                # Whoever gives it back removes the file: then we have locked a file that nobody will find.
                if _same_file(descriptor, self.path):
                    break
            except OSError as error:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
                raise NoLocksError(error.errno, error.strerror) from error
            os.close(descriptor)
        self._descriptor = descriptor
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        return True

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # left by another user's process, which was killed
            return os.open(self.path, os.O_RDONLY)

    def holder(self) -> str:
        """Who has it, in words."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip()[:200] or "another process"
        except OSError:
            return "another process"

    def give_back(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if os.name != "nt":
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _AT, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
