"""Replace several files of a folder atomically: readers see all the old files or all the new ones, never a mixture.

No operating system renames several files at once. So:

    1. The new files are written into a subfolder FOLDER/.NAME.tmp and flushed to disk.
    2. That folder is renamed to FOLDER/.saved. This single rename commits the swap.
    3. The new files are moved into FOLDER one by one, old files that they make obsolete are deleted, and .saved is
       removed.

If the process is killed in step 1, the old files are untouched. If it is killed in step 3, .saved remains, with a
manifest of the new files. The next writer completes the moves (`finish`). A reader changes nothing, since the folder
may be read-only or shared, and folder and manifest may come from an untrusted source; instead, `whole` gives it a
temporary folder with links to the right version of each file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError, UsageError
from .files import shown, sync_folder

SAVED, MANIFEST = ".saved", "manifest.json"
# Every swap changes at least one of these.
_CHANGED_FILES = ("tinygpt-run.json", "config.json", "adapter_config.json", f"{SAVED}/{MANIFEST}")
_TRIES, _PAUSE = 50, 0.02

T = TypeVar("T")


# Writing ----------------------------------------------------------------------------------------------


def commit(staging: Path, folder: Path, files: list[str], stale: Iterable[str]) -> None:
    """Commit the files in `staging`; `finish` then moves them into `folder`.

    staging: a subfolder of `folder`; its files must have been synced, but not the folder itself. files: their names, in
    the order in which to move them. stale: names of files that the new ones make obsolete.
    Raises OSError, in which case nothing has changed.
    """
    with open(staging / MANIFEST, "wb") as file:
        content = {"files": files, "stale": sorted(set(stale) - set(files))}
        file.write(json.dumps(content, indent=2, sort_keys=True).encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(staging)
    os.rename(staging, folder / SAVED)
    sync_folder(folder)


def finish(folder: Path, ours: Callable[[str], bool]) -> None:
    """Complete the moves of a committed swap. The caller must be the only writer.

    ours: tells which file names a swap may touch; others are neither replaced nor removed.
    Raises CheckpointError if the manifest is damaged or a file can't be moved.
    """
    saved = folder / SAVED
    if not saved.is_dir():
        return
    try:
        manifest = _manifest(folder)
        if manifest is not None:
            for name in manifest["files"]:
                with contextlib.suppress(FileNotFoundError):  # moved before the interruption
                    if ours(name):
                        os.replace(saved / name, folder / name)
            for name in filter(ours, manifest["stale"]):
                (folder / name).unlink(missing_ok=True)
            sync_folder(folder)
            (saved / MANIFEST).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            saved.rmdir()
    except OSError as error:
        if not (saved / MANIFEST).exists():  # another writer has finished the moves
            return
        raise CheckpointError(
            f"{shown(saved)} holds complete files from an interrupted save, and they can't be moved to "
            f"{shown(folder)}: {error.strerror or error}"
        ) from error


def pending(folder: Path) -> bool:
    """Whether `folder` holds a swap that is committed but not finished."""
    return (folder / SAVED / MANIFEST).exists()


def _manifest(folder: Path) -> dict[str, list[str]] | None:
    """The manifest of `.saved`, or None if no swap is pending. Raises CheckpointError if it is damaged."""
    path = folder / SAVED / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        return {key: [_plain_name(name) for name in content[key]] for key in ("files", "stale")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{shown(path.parent)} holds files from an interrupted save, and its {MANIFEST} is damaged "
            f"({getattr(error, 'strerror', None) or error}): remove it to keep the previous files"
        ) from error


def _plain_name(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise ValueError(f"it names {name!r}, which is not a file name in this folder")
    return name


# Reading ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Yield a folder with a consistent set of files: `folder` or, while a swap is pending, one with links to them.

    Changes nothing in `folder`. Raises CheckpointError if the manifest is damaged.
    """
    manifest = _manifest(folder)
    if manifest is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tinygpt-", ignore_cleanup_errors=True) as temporary:
        names = {name for name in os.listdir(folder) if (folder / name).is_file()} - set(manifest["stale"])
        for name in names | set(manifest["files"]):
            for source in (folder / SAVED / name, folder / name):  # in this order: files move from first to second
                if source.is_file():
                    _link(source.resolve(), Path(temporary) / name)
                    break
        yield Path(temporary)


def _link(source: Path, link: Path) -> None:
    try:
        os.symlink(source, link)
    except OSError:  # on Windows, only administrators may create symbolic links
        try:
            os.link(source, link)
        except OSError:
            shutil.copyfile(source, link)


def read_whole(folder: Path, read: Callable[[Path], T]) -> T:
    """Return `read(path)`, where `path` is a folder with a consistent set of the files of `folder`.

    Reads again if the files change meanwhile. Raises what `read` raises if they have not changed.
    """
    for attempt in range(_TRIES):
        before = _fingerprint(folder)
        try:
            with whole(folder) as path:
                result = read(path)
        except (OSError, UsageError):
            if _fingerprint(folder) == before or attempt == _TRIES - 1:
                raise
        else:
            if _fingerprint(folder) == before:
                return result
        time.sleep(_PAUSE)  # a swap takes milliseconds
    return result


def _fingerprint(folder: Path) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for name in _CHANGED_FILES:
        try:
            status = os.stat(folder / name)
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return found
