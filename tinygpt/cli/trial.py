"""Trial runs, `--dry-run` and `--lr-find`. The option `--sweep` (`sweep.py`) is added here, too.

Both build the run in a temporary folder, take a few steps there, and leave nothing behind but the range test's picture.
They can be given on the command line only, and are not part of a configuration file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..console import in_bytes, say
from ..errors import Need, UsageError
from ..files import folder_made, shown, user_path
from ..training import Trainer
from ..training.monitoring.picture import require_matplotlib
from ..training.storage.folder import TOKENS, RunFolder
from ..training.trials.dry_run import measure_run, peak_so_far, require_disk
from ..training.trials.lr_find import PICTURE, find_lr
from .sweep import add_sweep_option


def add_trial_options(parser: argparse.ArgumentParser) -> None:
    """Call it after `add_config_option`, so that these options are not keys of the file."""
    group = parser.add_argument_group("trial runs")
    either = group.add_mutually_exclusive_group()
    words = "check everything, take three steps, report how much memory, time and disk the run takes, and write nothing"
    either.add_argument("--dry-run", action="store_true", help=words)
    words = f"a short learning-rate range test: suggests a rate to start from, and draws {PICTURE} in --out"
    either.add_argument("--lr-find", action="store_true", help=words)
    add_sweep_option(either)


@contextlib.contextmanager
def built_elsewhere(options: argparse.Namespace, out: str) -> Iterator[argparse.Namespace]:
    """The options with a temporary folder instead of --out. Raises UsageError if no run could begin in --out."""
    what = "--dry-run" if options.dry_run else "--lr-find"
    if options.resume:
        raise UsageError(f"{what} only works for a new run: leave out --resume")
    if options.dry_run:
        _require_writable(user_path(out))
    with tempfile.TemporaryDirectory(prefix="tinygpt-") as place:
        changed = {"out": os.path.join(place, "run"), "overwrite": False, "no_cache": True}
        yield argparse.Namespace(**vars(options) | changed)


def trial_needs(options: argparse.Namespace) -> list[Need]:
    """Checks of the libraries that a trial uses besides those of its run."""
    return [require_matplotlib] if options.lr_find else []


def require_free(folder: RunFolder, options: argparse.Namespace, texts: list[str]) -> None:
    """Raise UsageError if a run could not begin in its folder."""
    if options.dry_run:
        folder.require_free(options.overwrite)
        for path in texts:
            folder.require_not_among(Path(path))


def _require_writable(folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "no permission" if there.is_dir() else "it is a file"
        raise UsageError(f"cannot write to the folder {shown(there)} ({why}): choose another --out")


def try_out(trainer: Trainer, options: argparse.Namespace, out: str, about: str, final: int | None = None) -> int:
    """Do what --dry-run or --lr-find asks for, with a trainer that was built elsewhere.

    final: batches of the evaluation of the best weights at the end; None if the command has none.
    """
    say(about)
    folder = user_path(out)
    if options.dry_run:
        tokens = trainer.folder / TOKENS
        data = tokens.stat().st_size if tokens.exists() else 0
        found = measure_run(trainer, final, data, peak_so_far() if trainer.parameters[0].backend == "numpy" else 0)
        say(found.describe())
        free = require_disk(found.disk, folder)
        say(f"{in_bytes(free)} are free for {shown(folder)}. This was a dry run: nothing was written.")
        return 0
    test = find_lr(trainer)
    say(test.summary())
    picture = folder_made(folder) / PICTURE
    test.draw(picture)
    say(f"The picture is {shown(picture)}; nothing else was written.")
    return 0
