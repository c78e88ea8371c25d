"""`--sweep` of `tinygpt train` and `finetune`: every combination of some settings, one run after another.

    tinygpt train --data FILE --out FOLDER --sweep "lr=1e-4,3e-4 dropout=0,0.1"
    tinygpt train --sweep "lr=1e-4,3e-4 dropout=0,0.1" --out FOLDER --resume

The text is encoded once, by the first run: the others take its tokens from the cache (`training/text/token_cache.py`),
unless encoding is as fast as copying. All combinations are checked before the first run. Each run equals that of the
plain command with the same options, bit for bit, in its own subfolder of --out. If one diverges or fails, the table
says so, and the search continues. Ctrl-C saves the run and stops. FOLDER/sweep.json records the progress: --resume
skips the runs that have finished or diverged, continues the one that was stopped, and tries failed ones again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import say
from ..data.opening import STDIN
from ..errors import CheckpointError, OutOfMemoryError, UsageError
from ..files import folder_made, shown, user_path
from ..training import DivergedError, RunFolder, TrainingConfig
from ..training.final_evaluation import NONE
from ..training.settings.config_file import given_settings, keys_of, located
from ..training.storage.folder import CONFIGURATION
from ..training.trials.sweep import (
    DIVERGED,
    EXAMPLE,
    FAILED,
    FINISHED,
    RUNNING,
    STATE,
    Row,
    Search,
    read_sweep,
    rows_of,
)
from .parser import OptionParser
from .process import DIVERGED as NOTHING_FINISHED
from .process import again

_EITHER = {"steps": "epochs", "epochs": "steps"}


@dataclass(frozen=True)
class Command:
    """The command that makes the runs. run: makes one, and returns an exit code. check: returns the settings of a run
    with these options, and raises UsageError if they are invalid."""

    name: str
    run: Callable[[argparse.Namespace], int]
    check: Callable[[argparse.Namespace], TrainingConfig]


def add_sweep_option(group: Any) -> None:
    words = (
        f"try all combinations of settings, such as {EXAMPLE}: one run each, in a subfolder of --out, then a table of "
        "their best validation losses; --resume continues after Ctrl-C"
    )
    group.add_argument("--sweep", metavar="SETTINGS", help=words)


def sweep(options: argparse.Namespace, command: Command, out: str) -> int:
    """Make all runs that are left, and print the table. Returns an exit code: 1 if no run has finished.

    out: the folder of the search.
    """
    values = read_sweep(options.sweep, keys_of(options))
    if options.overwrite:
        raise UsageError("--sweep replaces no runs: leave out --overwrite, and choose an --out where there is no sweep")
    place = user_path(out)
    if options.resume:
        search = _continued(options, command, place, values)
    else:
        search = _new(options, command, place, values)
    with _held(search):
        return _Runs(search, command, options.sweep).make()


def require_no_sweep(out: str) -> None:
    """For a plain run that is to be resumed. Raises UsageError if the folder holds a sweep."""
    place = user_path(out)
    if (place / STATE).exists() and not RunFolder(place).holds_run():
        search = Search.load(place)
        go_on = again(search.command, "--sweep", search.asked, "--resume", "--out", shown(place))
        raise UsageError(f"the folder {shown(place)} holds a sweep; continue it with {go_on}")


def _new(options: argparse.Namespace, command: Command, place: Path, values: dict[str, list[Any]]) -> Search:
    """A new search, whose combinations have all been checked. Writes nothing."""
    if (place / STATE).exists():
        raise UsageError(
            f"the folder {shown(place)} already holds a sweep: continue it with --resume, or choose another --out"
        )
    if RunFolder(place).holds_run():
        raise UsageError(f"the folder {shown(place)} already holds a run: choose another --out for the sweep")
    left_out = {"out", "overwrite", *values, *(_EITHER[key] for key in values if key in _EITHER)}
    given = given_settings(options, _fresh(command.name))
    base = {key: located(key, value) for key, value in given.items() if key not in left_out}
    if "seed" in values and "model" in keys_of(options) and "valid" not in base:
        raise UsageError(
            "--sweep: seed also chooses the rows for validation here, so losses could not be compared: give rows for "
            "validation as --valid FILE"
        )
    if STDIN in (base.get("data"), *base.get("files", ())):
        raise UsageError("--sweep reads the text for each run, so it can't come from a pipe: save it in a file first")
    search = Search(place, command.name, values, base, rows_of(values))
    for row in search.rows:
        try:
            config = command.check(_options_of(search, row))
            search.folder(row).require_free()
        except UsageError as error:
            raise UsageError(f"--sweep, {row.folder}: {error}") from error
        if "batch_size" in values and config.eval_batches > 0:
            raise UsageError(
                f"--sweep: an evaluation reads {config.eval_batches} batches, so batch_size changes what it reads, and "
                "losses could not be compared: give --eval-batches 0, which reads all that is for validation"
            )
    return search


def _continued(options: argparse.Namespace, command: Command, place: Path, values: dict[str, list[Any]]) -> Search:
    """The search in the folder. Raises CheckpointError unless it is the one that the options describe."""
    search = Search.load(place)
    if search.command != command.name:
        raise CheckpointError(f"the sweep in {shown(place)} is one of tinygpt {search.command}, not {command.name}")
    if list(search.values.items()) != list(values.items()):
        raise CheckpointError(
            f'the sweep in {shown(place)} is another one, "{search.asked}": give that one, or start a new one with '
            "another --out"
        )
    for key, value in given_settings(options, _fresh(command.name)).items():
        there = search.base.get(key)
        if key != "out" and located(key, value) != there:
            option = f"--{key.replace('_', '-')}"
            raise CheckpointError(
                f"the sweep in {shown(place)} has {option} {'by default' if there is None else there}, not {value}: "
                f"leave {option} out"
            )
    return search


def _fresh(command: str) -> argparse.Namespace:
    """A command's defaults. (The command line's own parser has the values from --config as defaults.)"""
    options: argparse.Namespace = OptionParser(source=f"tinygpt.cli.{command}").parse_args([])
    return options


def _options_of(search: Search, row: Row) -> argparse.Namespace:
    """The options that make the run of a row, or resume it."""
    options = _fresh(search.command)
    keys, resume = keys_of(options), search.folder(row).holds_run()
    settings = {"final_eval": NONE} | search.base if "final_eval" in keys else search.base
    for key, value in (settings | row.settings).items():
        if not resume or key == "final_eval":  # a resumed run has the others in its checkpoint
            setattr(options, keys[key].dest, copy.copy(value))
    options.out, options.resume = str(search.place / row.folder), resume
    return options


@contextlib.contextmanager
def _held(search: Search) -> Iterator[None]:
    """Make and lock the folder. If none of its runs has begun, the search leaves nothing behind."""
    place = search.place
    missing = [folder for folder in (place, *place.absolute().parents) if not folder.exists()]
    folder_made(place)
    try:
        with RunFolder(place) as folder:
            folder.lock()
            try:
                search.save()
                yield
            finally:
                if not _begun(search):
                    (place / STATE).unlink(missing_ok=True)
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # not empty
                made.rmdir()


def _begun(search: Search) -> bool:
    return any(search.folder(row).holds_run() for row in search.rows)


class _Runs:
    """Makes the runs of a search."""

    def __init__(self, search: Search, command: Command, asked: str) -> None:
        self.search, self.command = search, command
        self.go_on = again(command.name, "--sweep", asked, "--resume", "--out", shown(search.place))

    def make(self) -> int:
        search, count = self.search, len(self.search.rows)
        for number, row in enumerate(search.rows, 1):
            if search.is_over(row):
                continue
            say(f"\nRun {number} of {count}: {row.folder}")
            code = self._make(row)
            gc.collect()  # a trainer and its parts refer to each other
            if code:
                done = sum(map(search.is_over, search.rows))
                say(f"\nThe sweep was stopped with {done} of {count} runs done. Continue with:\n    {self.go_on}")
                return code
        return self._report()

    def _make(self, row: Row) -> int:
        """Make one run, and record how it ended. Returns 0, or the exit code of the signal that stopped it."""
        self.search.record(row, RUNNING)
        try:
            code = self.command.run(_options_of(self.search, row))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except DivergedError as error:
            self._ended_badly(row, DIVERGED, error)
        except (MemoryError, OutOfMemoryError) as error:
            self._ended_badly(row, FAILED, f"not enough memory ({error})")
        except (UsageError, OSError) as error:
            if not _begun(self.search):  # a mistake that all runs share, such as a missing text
                raise
            self._ended_badly(row, FAILED, error)
        else:
            if code:
                return code
            self.search.record(row, FINISHED)
        return 0

    def _ended_badly(self, row: Row, status: str, why: object) -> None:
        self.search.record(row, status, " ".join(str(why).split()))
        say(f"This run {'failed' if status == FAILED else status}: {row.why}")

    def _report(self) -> int:
        search, best = self.search, self.search.best()
        say(f"\n{search.table()}\n")
        if any(row.status == FAILED for row in search.rows):
            say(f"Try the failed runs again with:\n    {self.go_on}")
        if best is None:
            say("No run has finished.")
            return NOTHING_FINISHED
        folder = search.place / best.folder
        say(
            f"The best is {shown(folder)}, with a validation loss of {best.loss:.4f} at step {best.step}; all of its "
            f"settings are in {shown(folder / CONFIGURATION)}."
        )
        return 0
