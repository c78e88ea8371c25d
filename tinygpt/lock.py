"""A file lock that the operating system releases when the process ends, however it ends. So it is never stale.

The lock file contains the process id and the host name, for error messages. Its existence does not mean that it is
locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from pathlib import Path

_TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_AT = 1 << 20  # Windows locks bytes, which others then can't read, so we lock one far past the text


class NoLocksError(OSError):
    """The file system of this folder does not support locks."""


class Lock:
    """An exclusive lock among all processes that share the file system, also across machines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Try to take the lock. Returns False if another process has it.

        Raises NoLocksError if the file system has no locks, OSError if the lock file can't be created.
        """
        while True:
            descriptor = self._open()
            try:
                if not _lock(descriptor):
                    os.close(descriptor)
                    return False
                # The previous holder deletes the file on release: then we have locked a file that no one else can find.
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
        except PermissionError:  # left behind by a killed process of another user
            return os.open(self.path, os.O_RDONLY)

    def holder(self) -> str:
        """Describe who holds the lock, for error messages."""
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


def holder_of(path: Path) -> str | None:
    """Who holds the lock; None if nobody does, or if that can't be determined. Leaves the file as it is."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _lock(descriptor) else Lock(path).holder()
    except OSError:
        return None
    finally:
        os.close(descriptor)  # and releases the lock, if it was free


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
