"""Atomic file writes.

A crash, a full disk or Ctrl-C in the middle of a write must not destroy the previous version of a file. So we
write to a temporary file in the same folder, flush it to disk, then rename it. A rename within a folder is atomic
on every file system we know of. (For several files at once, see `exchange.py`.)

A killed process leaves its temporary file `.NAME.xxxxxxxx.tmp` behind. The next writer of NAME removes it with
`remove_left_overs`, if it knows that no other process is writing NAME.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import CheckpointError, UsageError

_LEFT_OVER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
# Errors from network shares and FUSE file systems that don't support fsync on a folder.
_NO_FOLDER_SYNC = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM", "EISDIR", "EROFS")
    if hasattr(errno, name)
}
# What reading a JSON file of ours raises if it is damaged: it is not UTF-8, not JSON, or has other keys or values.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`. On a clean exit it replaces `path`; otherwise it is removed.

    mode: "wb" for bytes, "w" for UTF-8 text. Raises OSError as `open` does.
    """
    encoding = None if "b" in mode else "utf-8"
    with _replacing(Path(path)) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def atomic_write_with(path: str | os.PathLike[str], write: Callable[[str], None]) -> None:
    """Like `atomic_write`, for libraries that need a file name: calls `write(temporary_name)`."""
    with _replacing(Path(path)) as temporary:
        write(str(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file, which replaces `path` on a clean exit."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Not tempfile, whose files only their owner can read: a run may be shared. os.open respects the umask.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, if the file system supports that. Windows neither can nor needs to."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def remove_left_overs(folder: Path, ours: Callable[[str], bool], age: float = 0.0) -> None:
    """Remove temporary files that killed processes left behind, for file names that `ours` accepts.

    age: only files at least this many seconds old, in case another process is writing one now.
    """
    for entry in os.listdir(folder):
        found = _LEFT_OVER.fullmatch(entry)
        if found is not None and ours(found[1]):
            with contextlib.suppress(OSError):  # a leftover file does no harm
                if time.time() - os.stat(folder / entry).st_mtime >= age:
                    os.unlink(folder / entry)


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as printable text: bytes that are not valid UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ~ or ~name replaced by that home folder; an unknown name stays as it is.

    `Path.expanduser` raises RuntimeError for such a name. Left as it is, opening it says that there is no such file.
    """
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def explain_os_errors(verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError (no such file, no permission, disk full) into a one-line UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot {verb} {shown(path)}: {error.strerror or error}") from error


def damaged(where: str, error: Exception, otherwise: str) -> CheckpointError:
    """The sentence about a file that one of DAMAGE was raised for. otherwise: what to do if there is no copy of it."""
    return CheckpointError(f"{where} is damaged ({error}): restore it from a copy, or {otherwise}")


def folder_made(folder: Path) -> Path:
    """Create `folder` and its parents if missing, and return it. Raises UsageError."""
    with explain_os_errors("create the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
