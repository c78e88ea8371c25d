"""Files that are either whole or not there.

A crash, a full disk or Ctrl-C in the middle of a write must not cost the user the file that was
there before. So: write to a temporary file in the same folder, flush it to the disk, then rename. A
rename within a folder is atomic on every file system we know of. (Several files at once: `exchange.py`.)

A process that is killed leaves its temporary file, `.NAME.xxxxxxxx.tmp`. Whoever writes NAME next, and knows that
nobody else does, removes it: `remove_left_overs`.
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

from .errors import UsageError

_LEFT_OVER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
# What network shares and FUSE file systems answer to the fsync of a folder. They keep their own order of things.
_NO_FOLDER_SYNC = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM", "EISDIR", "EROFS")
    if hasattr(errno, name)
}


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on a clean exit it replaces `path`, else it is removed.

    mode: "wb" for bytes, "w" for UTF-8 text. Raises OSError as `open` does.
    """
    encoding = None if "b" in mode else "utf-8"
    with _replacing(Path(path)) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def atomic_write_with(path: str | os.PathLike[str], write: Callable[[str], None]) -> None:
    """As `atomic_write`, for libraries that want a file name: `write(temporary_name)`."""
    with _replacing(Path(path)) as temporary:
        write(str(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """The name of an empty temporary file beside `path`, which takes its place on a clean exit."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Not tempfile: its files are private to the user, and a run may be shared. This heeds the umask.
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
    """Make a rename durable, where the file system can. Windows can't open folders, and needs no such call."""
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
    """Remove the temporary files that killed processes have left of the names that `ours` knows.

    age: in seconds, where another process may be writing such a file now.
    """
    for entry in os.listdir(folder):
        found = _LEFT_OVER.fullmatch(entry)
        if found is not None and ours(found[1]):
            with contextlib.suppress(OSError):  # a file too many does no harm
                if time.time() - os.stat(folder / entry).st_mtime >= age:
                    os.unlink(folder / entry)


def shown(path: str | os.PathLike[str]) -> str:
    """`path` to print or to keep in a text: bytes of a name that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", errors="replace")


@contextlib.contextmanager
def explain_os_errors(verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError (no such file, no permission, a full disk) into one sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot {verb} {shown(path)}: {error.strerror or error}") from error


def folder_made(folder: Path) -> Path:
    """`folder`, created with its parents where it is missing."""
    with explain_os_errors("create the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
