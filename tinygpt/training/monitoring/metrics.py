"""The metrics file: one JSON object per line, which any tool can read and follow during the run.

    {"step": 10, "loss": 3.41, "lr": 0.0001, "grad_norm": 2.3, "tokens": 7680, "seconds": 0.2}
    {"step": 250, "validation_loss": 2.52}

Other measurements of `tinygpt train` are in the same records: "tokens_per_second", "mfu" (share of the processor's
peak, see `estimate.py`), "seconds_left", "energy_wh" or "energy_wh_estimate" (`energy.py`). A sample is a separate
record, and so are the norms of the layers (`layer_norms.py`).

A resumed run drops the lines after its checkpoint's step, because it will write them again. So the file ends up the
same as that of an uninterrupted run, except for what is `MEASURED`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...files import atomic_write

if TYPE_CHECKING:
    from ..loop import Trainer

# These depend on the machine, not only on the run. "seconds" is the time spent training.
MEASURED = frozenset({"seconds", "tokens_per_second", "mfu", "seconds_left", "energy_wh", "energy_wh_estimate"})


def training_record(trainer: Trainer, tokens_per_step: int) -> dict[str, Any]:
    """The record of the last steps."""
    state = trainer.state
    record = {
        "step": state.step, "loss": state.mean_loss(), "lr": trainer.optimizer.lr, "grad_norm": trainer.grad_norm,
        "tokens": state.step * tokens_per_step, "seconds": round(state.seconds, 3),
    }  # fmt: skip
    if trainer.loss_scale.active:
        record["loss_scale"] = trainer.loss_scale.scale
    return record | trainer.watch.figures(trainer)


class MetricsFile:
    """Appends records as whole lines. `sync` flushes them to disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def restart(self, lines: int) -> int:
        """Keep the first `lines` lines, those written before the checkpoint; return how many there are.

        Fewer than `lines` if some were removed. An incomplete last line does not count.
        """
        content = self.path.read_bytes() if lines and self.path.exists() else b""
        kept = [line for line in content.splitlines(keepends=True)[:lines] if line.endswith(b"\n")]
        with atomic_write(self.path) as file:
            file.writelines(kept)
        return len(kept)

    def append(self, record: dict[str, Any]) -> None:
        """Append one record. Raises OSError if the disk is full; the file then ends with the previous line."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._file is None:  # unbuffered: readers see each line at once, and a kill loses nothing
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  closed by close()
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            while written < len(line):  # write the rest, or get the error that explains why not
                written += self._file.write(line[written:])
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise

    def sync(self) -> None:
        """Flush to disk before a checkpoint that relies on these lines is written."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class NoMetrics(MetricsFile):
    """Writes nothing."""

    def restart(self, lines: int) -> int:
        return lines

    def append(self, record: dict[str, Any]) -> None:
        pass


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file, without an incomplete last line.

    Raises CheckpointError for a line that is not a record.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _record(path, number, line)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
        if not isinstance(record, dict) or not isinstance(record["step"], int):
            raise ValueError("it is not the record of a step")
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"line {number} of {path} is damaged: {error}") from error
    return record
