"""A search over settings: the values of `--sweep`, and `sweep.json`, which records the progress of the search.

    values = read_sweep("lr=1e-4,3e-4 dropout=0,0.1", keys)     # {"lr": [0.0001, 0.0003], "dropout": [0.0, 0.1]}
    search = Search(place, "train", values, base, rows_of(values))
    search.save()
    search = Search.load(place)

Every combination of the values is a separate run, in a subfolder of the search's folder. Runs are compared by their
best validation loss, so a setting that changes the meaning of this loss can't be searched over, nor one without effect.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...checkpoint import CheckpointFolder, read_checkpoint
from ...errors import CheckpointError, UsageError
from ...files import DAMAGE, atomic_write, damaged, explain_os_errors, shown
from ...gpt import GPTConfig
from ..settings.config import TrainingConfig
from ..settings.config_file import known_key, located, value_of_text
from ..storage.folder import RunFolder

STATE, _FORMAT = "sweep.json", 1
WAITING, RUNNING, FINISHED, DIVERGED, FAILED = "waiting", "running", "finished", "diverged", "failed"
EXAMPLE = '"lr=1e-4,3e-4 dropout=0,0.1"'

_PLACE = frozenset({"out", "overwrite"})
_LOSS = frozenset({
    "add_token", "block_size", "class_weights", "clean", "cross_documents", "data", "encoding", "eval_batches",
    "eval_every", "files", "folds", "init_from", "label_columns", "label_kind", "loss_on", "model", "newlines", "pack",
    "preset", "revision", "skip_bad_files", "skip_bad_rows", "task", "template", "tokenizer", "valid",
    "validation_fraction", "vocab_size",
})  # fmt: skip
_NOTHING = frozenset({
    "backend", "checkpoint_every", "cuda_graphs", "detect_anomaly", "final_eval", "log_every", "log_to", "no_cache",
    "sample_every", "sample_prompt", "sample_tokens", "watch_layers", "watts",
})  # fmt: skip
_OTHERS = frozenset({
    "augment", "epochs", "label_smoothing", "lora_alpha", "lora_dropout", "lora_rank", "lora_targets", "max_minutes",
    "project", "quantize", "word_vectors",
})  # fmt: skip
_FIELDS = frozenset(setting.name for config in (TrainingConfig, GPTConfig) for setting in dataclasses.fields(config))
TRIED = (_OTHERS | _FIELDS) - _NOTHING - _LOSS


# The values to try ------------------------------------------------------------------------------------

_VALUE = r"""(?:'[^']*'|"[^"]*"|[^\s,;='"]+)"""
_ITEM = re.compile(rf"[\s;]*([A-Za-z][\w-]*)\s*=\s*({_VALUE}(?:\s*,\s*{_VALUE})*)(?=[\s;]|$)")


def read_sweep(text: str, keys: Mapping[str, argparse.Action]) -> dict[str, list[Any]]:
    """The values to try, by key, from "key=value,value key=value"; a value that contains a comma is quoted.

    keys: the options of the command by their keys in a configuration file. Raises UsageError for a malformed list, an
    unknown key, a value that the option does not accept, and a key that can't be searched over.
    """
    found: dict[str, list[Any]] = {}
    end = len(text.rstrip(" \t\n;"))
    position = 0
    while position < end or not found:
        item = _ITEM.match(text, position)
        if item is None:
            rest = text[position:].strip()
            raise UsageError(f"--sweep: {rest[:60]!r} is not of the form key=value,value: write it like {EXAMPLE}")
        name = known_key(item[1], keys, "--sweep")
        if name in found:
            raise UsageError(f"--sweep: {name} is there twice: give all of its values at once, as {name}=A,B")
        _require_tried(name)
        parts = map(_bare, re.findall(_VALUE, item[2]))
        values = [located(name, value_of_text(keys[name], name, part, "--sweep")) for part in parts]
        again = next((value for place, value in enumerate(values) if value in values[:place]), None)
        if again is not None:
            raise UsageError(f"--sweep: {name} has the value {again} twice: leave one out")
        found[name] = values
        position = item.end()
    return found


def _bare(part: str) -> str:
    return part[1:-1] if part[0] in "'\"" else part


def _require_tried(name: str) -> None:
    if name in TRIED:
        return
    if name in _PLACE:
        why = "says where a run goes, and each run of a sweep has its own folder: leave it out"
    elif name in _LOSS:
        why = (
            "changes what the validation loss is measured on, so its values could not be compared: give it as an "
            "option, for all runs"
        )
    elif name in _NOTHING:
        why = "changes nothing of what a run learns: give it as an option, for all runs"
    else:
        why = "is not searched over: give it as an option, for all runs"
    raise UsageError(f"--sweep: {name} {why}")


# The search -------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One run. folder: its name, in the search's folder. loss: the best validation loss of a finished run, at `step`.
    seconds: of training. why: what went wrong."""

    folder: str
    settings: dict[str, Any]
    status: str = WAITING
    loss: float | None = None
    step: int | None = None
    seconds: float | None = None
    why: str | None = None


@dataclass
class Search:
    """A search and its progress. command: makes the runs. values: to try, by key. base: the settings that all runs
    share, by key."""

    place: Path
    command: str
    values: dict[str, list[Any]]
    base: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    @property
    def asked(self) -> str:
        """The values in the form that `read_sweep` reads."""
        return " ".join(f"{key}={','.join(map(_quoted, values))}" for key, values in self.values.items())

    def folder(self, row: Row) -> RunFolder:
        return RunFolder(self.place / row.folder)

    def is_over(self, row: Row) -> bool:
        """Whether this run is done: it has finished or diverged, and its folder still exists."""
        return row.status in (FINISHED, DIVERGED) and self.folder(row).holds_run()

    def record(self, row: Row, status: str, why: str | None = None) -> None:
        """Set the status of a run, and save it."""
        row.status, row.why, row.loss, row.step, row.seconds = status, why, None, None, None
        if status in (FINISHED, DIVERGED) and self.folder(row).holds_run():
            read = partial(read_checkpoint, parts=())
            progress = CheckpointFolder(self.folder(row)).load("latest", read).state["progression"]
            row.seconds = round(progress["seconds"], 3)
            if status == FINISHED:
                row.loss, row.step = progress["best_loss"], progress["best_step"]
        self.save()

    def best(self) -> Row | None:
        """The run with the lowest loss; None if none has finished."""
        finished = [row for row in self.rows if row.status == FINISHED]
        return min(finished, key=_loss) if finished else None

    def table(self) -> str:
        """All runs, the best one first."""
        head = [*self.values, "loss", "at step", "seconds", ""]
        lines = [head, *([*map(_words, row.settings.values()), *_figures(row)] for row in sorted(self.rows, key=_loss))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        justified = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        return "\n".join(
            "  ".join([*cells[:-1], line[-1]]).rstrip() for cells, line in zip(justified, lines, strict=True)
        )

    # Its file -----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write sweep.json, atomically. Raises UsageError."""
        state = {"format": _FORMAT} | {key: value for key, value in dataclasses.asdict(self).items() if key != "place"}
        path = self.place / STATE
        with explain_os_errors("write", path), atomic_write(path, "w") as file:
            json.dump(state, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")

    @classmethod
    def load(cls, place: Path) -> Search:
        """Raises CheckpointError if there is no sweep in `place`, or its file is damaged."""
        path = place / STATE
        try:
            state = json.loads(path.read_bytes().decode("utf-8"))
            if state.pop("format") != _FORMAT:
                raise ValueError("it is of another version")
            search = cls(place, **state | {"rows": [Row(**row) for row in state["rows"]]})
            asked = [row.settings for row in rows_of(search.values)]
            if [row.settings for row in search.rows] != asked or not all(map(_is_sound, search.rows)):
                raise ValueError("its runs are not those of its values")
        except FileNotFoundError:
            raise CheckpointError(
                f"there is no sweep in {shown(place)} to continue: leave out --resume, or give its folder as --out"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{shown(path)} can't be read: {error.strerror or error}") from error
        except DAMAGE as error:
            raise damaged(shown(path), error, "start again with another --out") from error
        return search


def rows_of(values: dict[str, list[Any]]) -> list[Row]:
    """One run per combination; the values of the last key change fastest."""
    rows: list[Row] = []
    names: set[str] = set()
    for chosen in itertools.product(*values.values()):
        settings = dict(zip(values, chosen, strict=True))
        name = plain = _folder_name(settings)
        number = 2
        while name.lower() in names:  # some file systems ignore case
            name, number = f"{plain}-{number}", number + 1
        names.add(name.lower())
        rows.append(Row(name, settings))
    return rows


def _folder_name(settings: dict[str, Any]) -> str:
    """A name that is valid in every file system: lr=0.0001,dropout=0.1."""
    name = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9_.+-]', '_', _words(value))}" for key, value in settings.items())
    return name[:180]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


def _quoted(value: Any) -> str:
    words = _words(value)
    return words if re.fullmatch(_VALUE, words) else f"'{words}'"


def _loss(row: Row) -> float:
    return math.inf if row.loss is None else row.loss


def _figures(row: Row) -> list[str]:
    if row.loss is not None:
        return [f"{row.loss:.4f}", str(row.step), f"{row.seconds or 0:.0f}", ""]
    return [
        "-",
        "",
        "" if row.seconds is None else f"{row.seconds:.0f}",
        row.status + (f": {row.why}" if row.why else ""),
    ]


def _is_sound(row: Row) -> bool:
    """Whether a row of the file is valid: it names a folder inside the search's, and a loss if it has finished."""
    return (
        re.fullmatch(r"[A-Za-z0-9_.+=,-]+", row.folder) is not None
        and row.folder.strip(".") != ""
        and row.status in (WAITING, RUNNING, FINISHED, DIVERGED, FAILED)
        and (row.status != FINISHED or (isinstance(row.loss, float) and math.isfinite(row.loss)))
    )
