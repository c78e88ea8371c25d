"""The folder of a run: which files belong to the run, who may write there, and how a new run replaces an old one.

    with RunFolder("out/run") as folder:
        place = folder.begin(overwrite=True)     # an empty staging folder inside it, for the files of a new run
        ...                                      # text, tokens, tokenizer, the first checkpoint
        folder.publish()                         # moves them into place and removes the old run's files

**Ownership.** A run marks its folder with `tinygpt-run.json`, which lists the files that the run writes. No other file
is ever replaced or removed: if a file has the name of a run file and the mark does not list it, a new run is refused.
Runs that are older than the mark are recognized by a valid `checkpoints.json` or `text.json`.

**Replacement.** A new run is staged in `.tinygpt-new-xxxxxxxx.tmp`. When it has evaluated and saved its first
checkpoint, all its files are moved into place atomically (`exchange.py`). Until then the old run stays intact.

**Locking.** A run holds `.tinygpt-lock` (`lock.py`), which is released when its process ends. Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ... import exchange
from ...checkpoint import CHECKPOINT, INDEX, MARK, MARK_FORMAT, marked_files, read_index
from ...data.dialogue import CHAT_TEMPLATE, TEMPLATE
from ...errors import CheckpointError, UsageError
from ...files import DAMAGE, atomic_write, remove_left_overs, shown, user_path
from ...interop.config import CONFIG, GENERATION
from ...interop.weights import SINGLE
from ...lock import Lock, NoLocksError
from ...tokenizers import FILES as TOKENIZER_FILES

LOCK = ".tinygpt-lock"
TEXT, TOKENS, DATA, METRICS, PICTURE = "text.json", "tokens.npy", "data.json", "metrics.jsonl", "loss_curve.png"
CONFIGURATION = "config.toml"
_OF_THE_LOOP = frozenset({MARK, INDEX, METRICS, PICTURE})
_OF_THE_TEXT = frozenset({TEXT, TOKENS, CONFIGURATION, *TOKENIZER_FILES})
_OF_THE_MODEL = frozenset({CONFIG, GENERATION, SINGLE, TEMPLATE, CHAT_TEMPLATE, DATA, *_OF_THE_TEXT})  # `export.py`
_STAGING = re.compile(r"\.tinygpt-new-[0-9a-f]{8}\.tmp")


def is_run_file(name: str) -> bool:
    """Whether a run may write a file of this name."""
    return name in _OF_THE_LOOP or name in _OF_THE_MODEL or CHECKPOINT.fullmatch(name) is not None


class RunFolder:
    """The folder of one run, which need not exist yet. Leaving its context releases the lock and cleans up."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self._lock: Lock | None = None
        self._staging: Path | None = None
        self._made: list[Path] = []  # folders that this object created
        self._lockless = False  # the file system has no locks, and the user was warned
        self.exports_model = False  # whether the run also writes the files of _OF_THE_MODEL

    def __str__(self) -> str:
        return shown(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    @property
    def place(self) -> Path:
        """Where the run's files are written: the staging folder until `publish`."""
        return self.path if self._staging is None else self._staging

    @property
    def staged(self) -> bool:
        return self._staging is not None

    @property
    def replaces(self) -> bool:
        """Whether this is an unpublished new run that will replace another one."""
        return self.staged and self.holds_run()

    def holds_run(self) -> bool:
        """Whether a run has saved something here."""
        return (self.path / INDEX).exists() and INDEX in self.owned()

    # Locking ------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Keep others from writing here until `release`, and finish or remove what killed processes left behind.

        Raises UsageError if another run is using the folder or it is not writable.
        """
        if self._lock is not None or self._lockless:
            return
        lock = Lock(self.path / LOCK)
        try:
            if not lock.take():
                raise UsageError(
                    f"another run is using the folder {self} ({lock.holder()}): wait for it, stop it, or choose "
                    "another folder"
                )
        except NoLocksError as error:
            # The user must prevent a second run. Files that look left over may belong to a live run, so they stay.
            self._lockless = True
            with contextlib.suppress(OSError, ValueError, AttributeError):
                why = error.strerror or error
                sys.stderr.write(f"The folder {self} can't be locked ({why}): don't start another run there now.\n")
            exchange.finish(self.path, is_run_file)
            return
        except OSError as error:
            raise UsageError(f"cannot write to the folder {self}: {error.strerror or error}") from error
        self._lock = lock
        try:
            exchange.finish(self.path, is_run_file)
            self._remove_left_overs()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock and delete an unpublished new run."""
        staging, self._staging = self._staging, None
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.give_back()
        for folder in self._made:
            with contextlib.suppress(OSError):  # not empty: it holds a run now
                folder.rmdir()
        self._made = []

    def _remove_left_overs(self) -> None:
        with contextlib.suppress(OSError):
            remove_left_overs(self.path, is_run_file)
            for name in os.listdir(self.path):
                if _STAGING.fullmatch(name):
                    shutil.rmtree(self.path / name, ignore_errors=True)

    @contextlib.contextmanager
    def held(self, resumed: bool) -> Iterator[None]:
        """Hold the lock while a run writes; make and mark the folder. resumed: the run continues the existing one.

        Raises UsageError if this run may not write to the folder.
        """
        mine = self._lock is None
        self._make()
        self.lock()
        try:
            if self._staging is None:
                owned = self.owned()
                if not resumed and INDEX in owned:
                    raise UsageError(
                        f"the folder {self} already holds a run: call resume() before run() to continue it, or "
                        "choose another folder"
                    )
                if not resumed:
                    self._require_free_of(self._to_write(), owned)
                if not os.path.lexists(self.path / MARK) or not self._to_write() <= marked_files(self.path):
                    self._write_mark(self.path, owned)
            yield
        finally:
            if mine:
                self.release()

    # Ownership ----------------------------------------------------------------------------------------

    def require_free(self, overwrite: bool = False) -> None:
        """Raise UsageError if a run or other files are in the way of a new run. Changes nothing."""
        if not self.path.is_dir() or exchange.pending(self.path):  # `begin` finishes the exchange, then checks again
            return
        owned = self.owned()
        if not overwrite and INDEX in owned:
            raise UsageError(
                f"the folder {self} already holds a run: continue it with --resume, keep it and choose another "
                "--out, or replace it with --overwrite"
            )
        self._require_free_of(self._to_write() | _OF_THE_TEXT, owned)
        if CONFIG not in owned and (self.path / CONFIG).exists():
            raise UsageError(
                f"the folder {self} holds a {CONFIG}, so a run there would be taken for a GPT-2 model: choose another "
                "folder"
            )

    def _to_write(self) -> frozenset[str]:
        """The files of a run besides checkpoints and those of its text."""
        return _OF_THE_LOOP | _OF_THE_MODEL if self.exports_model else _OF_THE_LOOP

    def _require_free_of(self, names: frozenset[str], owned: set[str]) -> None:
        there = (name for name in os.listdir(self.path) if name in names or CHECKPOINT.fullmatch(name))
        foreign = sorted(name for name in there if name not in owned)
        if foreign:
            raise UsageError(
                f"the folder {self} holds files that no run has written, but that have the names of a run's files "
                f"({', '.join(map(shown, foreign))}): choose another folder, or move them elsewhere"
            )

    def require_not_among(self, path: Path) -> None:
        """Raise UsageError if `path`, the text of a new run, is a file that the new run would replace."""
        for name in self.owned() if self.path.is_dir() else ():
            with contextlib.suppress(OSError):
                if os.path.samefile(self.path / name, path):
                    raise UsageError(
                        f"the text {shown(path)} is a file of the run in {self}, which the new run would replace: copy "
                        "it elsewhere, or choose another folder"
                    )

    def owned(self) -> set[str]:
        """The names of the existing files that belong to the run."""
        try:
            names = {name for name in os.listdir(self.path) if is_run_file(name)}
        except OSError:
            return set()
        there = {name for name in names if not (self.path / name).is_dir()}  # a run creates no folders
        listed = self._listed(there)
        return {name for name in there if name in listed or (listed and CHECKPOINT.fullmatch(name))}

    def _listed(self, there: set[str]) -> set[str]:
        if MARK in there:
            return marked_files(self.path)
        listed: set[str] = set()  # no mark: perhaps a run that is older than the mark
        if INDEX in there:
            with contextlib.suppress(CheckpointError):
                if "latest" in read_index(self.path / INDEX):
                    listed |= {INDEX, METRICS, PICTURE}
        if _is_text_of_a_run(self.path / TEXT):
            listed |= {METRICS, PICTURE, *_OF_THE_TEXT}
        return listed

    def _write_mark(self, place: Path, files: set[str]) -> None:
        names = sorted({name for name in files if not CHECKPOINT.fullmatch(name)} | self._to_write())
        with atomic_write(place / MARK, "w") as file:
            about = "the files of a training run of tinygpt, with its checkpoint-*.safetensors"
            mark = {"format": MARK_FORMAT, "about": about, "run": secrets.token_hex(8), "files": names}
            json.dump(mark, file, indent=1)
            file.write("\n")

    # A new run ----------------------------------------------------------------------------------------

    def begin(self, overwrite: bool = False) -> Path:
        """Create the folder if missing, lock it, and return an empty staging folder inside it for a new run's files.

        Raises UsageError if the folder is not free.
        """
        self._make()
        self.lock()
        self.require_free(overwrite)
        staging = self.path / f".tinygpt-new-{secrets.token_hex(4)}.tmp"
        try:
            staging.mkdir()
        except OSError as error:
            raise UsageError(f"cannot write to the folder {self}: {error.strerror or error}") from error
        self._staging = staging
        return staging

    def _make(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot create the folder {self}: {error.strerror or error}") from error
        self._made += missing

    def publish(self) -> Path:
        """Move the new run's files into place, replacing an old run. Returns the folder. Raises OSError, UsageError.

        The files must be closed and flushed to disk.
        """
        staging = self._staging
        assert staging is not None, "there is nothing to publish"
        owned, files = self.owned(), {*os.listdir(staging), MARK}
        self._write_mark(staging, files)
        foreign = sorted(name for name in files - owned if os.path.lexists(self.path / name))
        if foreign:  # created since the run began
            raise OSError(errno.EEXIST, f"there is a file {foreign[0]} now, which was not written by a run")
        # The mark first, because it says who owns the files; the index last, because it makes the folder a run.
        order = sorted(files, key=lambda name: (name == INDEX, name != MARK, name))
        exchange.commit(staging, self.path, order, owned)
        self._staging = None
        exchange.finish(self.path, is_run_file)
        return self.path


def _is_text_of_a_run(path: Path) -> bool:
    try:
        facts: Any = json.loads(path.read_bytes())
        return bool(re.fullmatch("[0-9a-f]{64}", facts["sha256"])) and {"description", "tokenizer"} <= facts.keys()
    except (OSError, *DAMAGE):
        return False
