"""Checkpoints that are written atomically and are always consistent.

A run's folder holds

    checkpoint-00002000.safetensors    everything of one step: weights, optimizer state, and (as JSON in the file's
                                       metadata) the configuration, random state and progress of the run
    checkpoints.json                   which file is "latest" and which is "best", and their SHA-256

One step is one file, so weights and optimizer state can't come from different steps. A file is renamed to its final
name only when it is complete and flushed to disk. The name is never that of a file in use: a run that is resumed and
stopped before its next step saves the same step again. Then one rename replaces `checkpoints.json`, so both its entries
change together, and the files that it no longer names are removed. After a crash, a kill or a full disk at any moment,
`checkpoints.json` names complete files. The SHA-256 detects a file that was truncated or changed later.

No pickle: a checkpoint holds numbers and text, and reading it runs no code (`tinygpt/safetensors_io.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, UsageError
from .exchange import read_whole
from .files import DAMAGE, atomic_write, damaged, remove_left_overs
from .gpt import GPTConfig
from .memory import number_of, parameter_count
from .safetensors_io import SafetensorsFile, write_safetensors

INDEX = "checkpoints.json"
MARK, MARK_FORMAT = "tinygpt-run.json", "tinygpt-run"  # the list of a run's files (`training/storage/folder.py`)
FORMAT = "tinygpt-checkpoint"
VERSION = 1
CHECKPOINT = re.compile(r"checkpoint-\d{8,}(-[bc])?\.safetensors")  # other files called checkpoint-... are not ours
_MAX_MISSING = 1 << 20  # numbers that the model may have beyond the checkpoint's before that counts as damaged
_INTEGER_LIMIT = 1 << 63  # integers in a state must be below it
_TRIES = 100  # attempts to read a checkpoint while a run saves every few milliseconds


@dataclass
class Checkpoint:
    """Everything of one step. model, optimizer: NumPy arrays by name. state: JSON values."""

    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]


class CheckpointFolder:
    """The latest and the best checkpoint of the run in `folder`."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.index_path = self.folder / INDEX

    def exists(self) -> bool:
        """Whether a checkpoint was ever completed here."""
        return self.index_path.exists()

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Write a checkpoint and make it the latest one and, with best=True, also the best one.

        Raises OSError (disk full, folder not writable); the previous checkpoints are then intact.
        """
        index = read_index(self.index_path) if self.exists() else {}
        path = self.folder / _unused_name(checkpoint.step, {entry["file"] for entry in index.values()})
        header = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(checkpoint.state, allow_nan=False)}
        arrays = {f"model.{name}": array for name, array in checkpoint.model.items()}
        arrays |= {f"optimizer.{name}": array for name, array in checkpoint.optimizer.items()}
        with atomic_write(path) as file:
            digest = write_safetensors(file, arrays, header)
        entry = {"file": path.name, "step": checkpoint.step, "sha256": digest}
        index["latest"] = entry
        if best or ("best" in index and index["best"]["step"] == checkpoint.step):  # same step, so the same weights
            index["best"] = entry
        with atomic_write(self.index_path, "w") as file:
            json.dump(index, file, indent=1)
            file.write("\n")
        self._tidy({entry["file"] for entry in index.values()})
        return path

    def _tidy(self, named: set[str]) -> None:
        """Remove checkpoints that `checkpoints.json` does not name, and half-written files of a killed process."""
        for name in os.listdir(self.folder):
            if CHECKPOINT.fullmatch(name) and name not in named:
                with contextlib.suppress(OSError):  # an extra file does no harm
                    (self.folder / name).unlink()
        remove_left_overs(self.folder, lambda name: name == INDEX or CHECKPOINT.fullmatch(name) is not None)

    def remove(self) -> None:
        """Delete all checkpoints: the index first, so that it never names a missing file."""
        self.index_path.unlink(missing_ok=True)
        self._tidy(set())

    def load(self, which: str = "latest", read: Callable[[Path], Any] | None = None) -> Any:
        """The "latest" or the "best" checkpoint. Works even while a run is saving another.

        read: called with the file's path instead of `read_checkpoint`, to read only a part; its result is returned.
        Raises CheckpointError if the checkpoint is missing, damaged or in another format.
        """
        return read_whole(self.folder, lambda place: CheckpointFolder(place)._load(which, read or read_checkpoint))

    def _load(self, which: str, read: Callable[[Path], Any]) -> Any:
        for _ in range(_TRIES):
            entry = self.entry(which)
            path = self.folder / entry["file"]
            try:
                _verify(path, entry["sha256"])
                return read(path)
            except CheckpointError:
                if self.entry(which) == entry:  # otherwise a run has saved another one and removed this one: try again
                    raise
        raise CheckpointError(
            f"the run in {self.folder} saves faster than its {which} checkpoint can be read: try again"
        )

    def entry(self, which: str = "latest") -> dict[str, Any]:
        """The entry of a checkpoint in `checkpoints.json`: its file, step and SHA-256."""
        if not self.exists():
            raise CheckpointError(
                f"there is no checkpoint in {self.folder}: {self.index_path} does not exist; "
                "give the folder of a run that has saved one"
            )
        index = read_index(self.index_path)
        if which not in index:
            raise CheckpointError(
                f"{self.index_path} names no {which!r} checkpoint, only {', '.join(index) or 'none at all'}"
            )
        return index[which]


def read_index(path: Path) -> dict[str, dict[str, Any]]:
    """The content of a `checkpoints.json`. Raises CheckpointError if it can't be read or is damaged."""
    try:
        index = json.loads(path.read_bytes().decode("utf-8"))
        for entry in index.values():
            if not CHECKPOINT.fullmatch(entry["file"]):
                raise ValueError(f"{entry['file']!r} is not the name of a checkpoint")
            if not isinstance(entry["step"], int) or not isinstance(entry["sha256"], str):
                raise ValueError("a step must be a whole number, and a SHA-256 a string")
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    except DAMAGE as error:
        raise damaged(str(path), error, "delete it and start a new run") from error
    return index


def marked_files(folder: Path) -> set[str]:
    """The files that the mark of the run in `folder` lists: none without a mark, or if it is damaged or not ours."""
    try:
        mark = json.loads((folder / MARK).read_bytes())
        if mark["format"] == MARK_FORMAT:
            return {MARK, *(name for name in mark["files"] if isinstance(name, str))}
    except (OSError, *DAMAGE):
        pass
    return set()


def _unused_name(step: int, used: set[str]) -> str:
    names = [f"checkpoint-{step:08d}{again}.safetensors" for again in ("", "-b", "-c")]  # at most two are in use
    return next(name for name in names if name not in used)


def _verify(path: Path, sha256: str) -> None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"the checkpoint {path}, which {INDEX} names, is missing") from None
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} can't be read: {error.strerror or error}") from error
    if found != sha256:
        raise CheckpointError(
            f"the checkpoint {path} is damaged or cut short: its {path.stat().st_size} bytes do not have the SHA-256 "
            f"in {INDEX}; restore it from a copy, or start a new run"
        )


def read_checkpoint(path: Path, parts: Collection[str] = ("model", "optimizer")) -> Checkpoint:
    """Read a checkpoint file: its state, and the arrays of these parts. Raises CheckpointError if it is not one."""
    try:
        with SafetensorsFile(path) as file:
            found = f"{file.metadata.get('format')} {file.metadata.get('version')}"
            if found == f"{FORMAT} {VERSION}":
                arrays = {name: file.read(name) for name in file.arrays if name.partition(".")[0] in parts}
                state = json.loads(file.metadata["state"])
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} can't be read: {error.strerror or error}") from error
    except (CheckpointError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {error}") from error
    if found != f"{FORMAT} {VERSION}":
        raise CheckpointError(f"{path} is not a checkpoint of this version: {found}, not {FORMAT} {VERSION}")
    if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
        raise CheckpointError(f"{path} is not a complete checkpoint: its state does not give the step")
    model = {name.removeprefix("model."): a for name, a in arrays.items() if name.startswith("model.")}
    optimizer = {name.removeprefix("optimizer."): a for name, a in arrays.items() if name.startswith("optimizer.")}
    return Checkpoint(model, optimizer, state)


def read_weights(path: Path) -> Checkpoint:
    """A checkpoint without the optimizer's arrays, which take more memory than the model's."""
    return read_checkpoint(path, ("model",))


def fingerprint(tokens: np.ndarray) -> str:
    """Identifies a text: SHA-256 of its length and of up to 64 chunks spread over the tokens.

    Up to 64 million tokens the chunks cover the whole text; a larger file is not read completely at every start.
    """
    digest = hashlib.sha256(str(len(tokens)).encode())
    chunk = 1 << 20
    for begin in range(0, len(tokens), max(chunk, -(-len(tokens) // 64))):
        digest.update(tokens[begin : begin + chunk].astype("<u4").tobytes())
    return digest.hexdigest()


def require_same(
    where: str, stored: Mapping[str, Any], given: Mapping[str, Any], but: frozenset[str] = frozenset()
) -> None:
    """Raise CheckpointError if settings differ from the checkpoint's, except those in `but`. It names each of them."""
    differences = [
        f"{name} is {stored.get(name)!r} there and {value!r} here"
        for name, value in given.items()
        if name not in but and stored.get(name) != value
    ]
    if differences:
        raise CheckpointError(f"{where} has a different configuration: {', '.join(differences)}")


# Reading the state ------------------------------------------------------------------------------------


def model_config(state: dict[str, Any], found: int, where: str) -> GPTConfig:
    """The model's configuration in a checkpoint's state. Raises CheckpointError, also if it describes a much larger
    model than the `found` numbers in the checkpoint could fill."""
    config: GPTConfig = made_of(GPTConfig.from_dict, state, "model_config", where)
    count = parameter_count(config)
    if count > 2 * found + _MAX_MISSING:  # 2: a user-defined model may share parameters
        raise CheckpointError(
            f"{where} is damaged: it holds {found} numbers for a model of {number_of(count)} parameters"
        )
    return config


def made_of(make: Any, state: dict[str, Any], name: str, where: str) -> Any:
    """`make(state[name])`, a configuration. Raises CheckpointError if that entry is missing or invalid."""
    try:
        values = entry(state, name)
        require_kind(name, values, dict)
        return make(values)
    except (UsageError, ValueError, TypeError) as error:
        raise CheckpointError(f"{where} has no valid {name}: {error}") from error


def entry(values: dict[str, Any], name: str) -> Any:
    """values[name]. Raises ValueError; the caller makes its message part of the one about the file."""
    if name not in values:
        raise ValueError(f"{name} is missing")
    return values[name]


def require_kind(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError unless the entry `name` is of exactly this type and, for an int, fits into 64 bits."""
    if type(value) is not kind:
        raise ValueError(f"{name} is {short(value)}, not a {'whole number' if kind is int else kind.__name__}")
    if kind is int and not -1 <= value < _INTEGER_LIMIT:
        raise ValueError(f"{name} is {short(value)}, which is out of range")


def short(value: Any) -> str:
    """The value for an error message, truncated: a forged file may hold a very long one."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
