"""Files that are either whole or not there.

A crash, a full disk or Ctrl-C in the middle of a write must not cost the user the file that was
there before. So: write to a temporary file in the same folder, flush it to the disk, then rename. A
rename within a folder is atomic on every file system we know of.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


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
    """Make a rename durable. Windows can't open folders, and needs no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
