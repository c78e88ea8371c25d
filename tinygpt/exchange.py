"""Several files of a folder that change at once: for us a folder holds the old ones or the new ones, never a mixture.

No system renames several files at once. So:

    1. everything is written into a folder inside, FOLDER/.NAME.tmp, and brought to the disk;
    2. that folder is renamed to FOLDER/.saved. This one rename is the moment at which the new files count;
    3. they are moved to their places, one after the other; old files that the new ones make obsolete are removed;
       .saved disappears.

Killed in 1: the old files are untouched. Killed in 3: .saved stays, with a manifest that says what belongs together.
Whoever writes to the folder next finishes the moves (`finish`). Whoever reads it changes nothing: `whole` shows it the
new files where they are, by links in a temporary folder. For a folder may be read-only or shared, and a manifest may
come from a stranger together with the folder.
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
_WITNESSES = ("tinygpt-run.json", "config.json", f"{SAVED}/{MANIFEST}")  # one of them changes in every exchange
_TRIES, _PAUSE = 50, 0.02

T = TypeVar("T")


# Writing ----------------------------------------------------------------------------------------------


def commit(staging: Path, folder: Path, files: list[str], stale: Iterable[str]) -> None:
    """Let the files in `staging` count: they are in their places after `finish`.

    staging: a folder inside `folder`, on the disk but for its names. files: in the order in which they are to be moved.
    stale: names that the new files make obsolete. Raises OSError; nothing has changed then.
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
    """Finish the moves of an exchange that counts already. Only for one who may write, and alone does.

    ours: which names such an exchange may be about; others are neither replaced nor removed.
    Raises CheckpointError where the manifest is damaged or a file can't be moved.
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
        if not (saved / MANIFEST).exists():  # another process has come to write here, and has finished the moves
            return
        raise CheckpointError(
            f"{shown(saved)} holds complete files whose saving was interrupted, and they can't be moved to "
            f"{shown(folder)}: {error.strerror or error}"
        ) from error


def pending(folder: Path) -> bool:
    """Whether `folder` holds an exchange that counts and is not finished."""
    return (folder / SAVED / MANIFEST).exists()


def _manifest(folder: Path) -> dict[str, list[str]] | None:
    """What `.saved` says of itself, or None where no exchange is under way. Raises CheckpointError."""
    path = folder / SAVED / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        return {key: [_plain(name) for name in content[key]] for key in ("files", "stale")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{shown(path.parent)} holds files whose saving was interrupted, and its {MANIFEST} is damaged "
            f"({getattr(error, 'strerror', None) or error}): remove it to keep the files that were there before"
        ) from error


def _plain(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise ValueError(f"it names {name!r}, which is no file of this folder")
    return name


# Reading ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder in which all files belong together: `folder` or, within an exchange, one of links to the new files.

    Changes nothing in `folder`. Raises CheckpointError for a damaged manifest.
    """
    manifest = _manifest(folder)
    if manifest is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tinygpt-", ignore_cleanup_errors=True) as temporary:
        names = {name for name in os.listdir(folder) if (folder / name).is_file()} - set(manifest["stale"])
        for name in names | set(manifest["files"]):
            for place in (folder / SAVED / name, folder / name):  # in this order: files move from there to here
                if place.is_file():
                    _link(place.resolve(), Path(temporary) / name)
                    break
        yield Path(temporary)


def _link(place: Path, link: Path) -> None:
    try:
        os.symlink(place, link)
    except OSError:  # Windows allows it to administrators only
        try:
            os.link(place, link)
        except OSError:
            shutil.copyfile(place, link)


def read_whole(folder: Path, read: Callable[[Path], T]) -> T:
    """`read(place)`, where `place` has the files of `folder` that belong together: once more if they change meanwhile.

    Raises what `read` raises when nothing has changed.
    """
    for turn in range(_TRIES):
        before = _witnesses(folder)
        try:
            with whole(folder) as place:
                result = read(place)
        except (OSError, UsageError):
            if _witnesses(folder) == before or turn == _TRIES - 1:
                raise
        else:
            if _witnesses(folder) == before:
                return result
        time.sleep(_PAUSE)  # an exchange takes milliseconds
    return result


def _witnesses(folder: Path) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for name in _WITNESSES:
        try:
            facts = os.stat(folder / name)
            found.append((facts.st_ino, facts.st_mtime_ns, facts.st_size))
        except OSError:
            found.append(None)
    return found
