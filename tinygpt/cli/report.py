"""`tinygpt report`: a page about training runs."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = """Write one self-contained HTML page about a training run: its result, curves of loss, learning rate, gradient
norm and speed, samples, the layers' norms (--watch-layers) and its settings. Several runs, or the folder of a sweep or
of folds, are compared in one picture. A run may still be in progress."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="the folder of a run, or one that holds runs")
    words = "the file to write; an earlier report there is replaced (default: %(default)s)"
    parser.add_argument("--out", metavar="FILE.html", default="report.html", help=words)
    parser.set_defaults(run=report)


def report(options: argparse.Namespace) -> int:
    """Write the page, and print a line for each run."""
    from ..files import atomic_write, explain_os_errors, shown, user_path
    from ..report import find_runs, page

    out = user_path(options.out)
    _require_ours(out, options.out)
    runs = find_runs(options.folders)
    with explain_os_errors("write", out), atomic_write(out, "w") as file:
        file.write(page(runs))
    for run in runs:
        best = "" if run.best is None else f"; the best validation loss was {run.best[1]:.4f} at step {run.best[0]:,}"
        print(f"{run.name}: {run.progress}{best}")
    print(f"The page is {shown(out)}")
    return 0


def _require_ours(out: Path, given: str) -> None:
    """Raise UsageError if no page can be written there, or if it would replace a file that is not a report."""
    from ..errors import UsageError
    from ..files import explain_os_errors
    from ..report.page import GENERATOR

    if out.is_dir() or not out.parent.is_dir():
        problem = "is a folder" if out.is_dir() else f"is in {out.parent}, which is not a folder"
        raise UsageError(f"--out {given} {problem}: give the name of a file to write, such as report.html")
    if out.exists():
        with explain_os_errors("read", out), open(out, "rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise UsageError(f"--out {given} exists, and is not an earlier report: give another name, or remove it")
