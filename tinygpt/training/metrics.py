"""The metrics file: one JSON object a line, which any tool can read and follow while the run goes on.

    {"step": 10, "loss": 3.41, "lr": 0.0001, "grad_norm": 2.3, "tokens": 7680, "seconds": 0.2}
    {"step": 250, "validation_loss": 2.52}

A resumed run drops the lines after its checkpoint's step, for it will write them again. So the file ends as an
undisturbed run's does, but for "seconds", the time spent in training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import CheckpointError
from ..files import atomic_write


class MetricsFile:
    """Appends records. `flush` puts them on the disk, `close` ends it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def restart(self, lines: int) -> int:
        """Keep the first `lines` lines (those that the checkpoint knows of) and go on behind them; how many they are.

        Fewer than `lines` when somebody has removed some.
        """
        # As bytes: a damaged line is nothing that a run must stop for.
        kept = self.path.read_bytes().splitlines(keepends=True)[:lines] if self.path.exists() else []
        with atomic_write(self.path) as file:
            file.writelines(kept)
        return len(kept)

    def append(self, record: dict[str, Any]) -> None:
        if self._file is None:
            self._file = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115  closed by close()
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()  # a reader follows the file, and a kill loses nothing

    def sync(self) -> None:
        """On the disk, before a checkpoint that counts on these lines is."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; a last line that a kill cut short is left out.

    Raises CheckpointError for a line that holds no record.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _record(path, number, line)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
        if not isinstance(record, dict) or not isinstance(record["step"], int):
            raise ValueError("it holds no record of a step")
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"line {number} of {path} is damaged: {error}") from error
    return record
