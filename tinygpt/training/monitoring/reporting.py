"""The output of a run: the metrics file, callbacks, progress lines, the loss curve.

A metrics record is written at once, because the checkpoint of the same step relies on it. Callbacks and progress lines
follow after that checkpoint is saved (`Report.tell`), so that they never report a step that a crash could undo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..result import CallbackError
from .metrics import MetricsFile, NoMetrics
from .picture import draw_loss_curve
from .progress import Progress


class Report:
    """metrics, picture: paths of the files. callbacks: called with every metrics record."""

    def __init__(self, metrics: Path, picture: Path, callbacks: Sequence[Callable[[dict[str, Any]], None]]) -> None:
        self.metrics, self.picture, self.callbacks = MetricsFile(metrics), picture, list(callbacks)
        self.untold: list[tuple[dict[str, Any], str]] = []

    def move_to(self, metrics: Path, picture: Path) -> None:
        """Continue in these files. The metrics file must be closed."""
        self.metrics.path, self.picture = metrics, picture

    def record(self, record: dict[str, Any], words: str = "") -> None:
        """Write a metrics record. words: its progress line, if any, for `tell`. Raises OSError."""
        self.metrics.append(record)
        self.untold.append((record, words))

    def tell(self, progress: Progress) -> None:
        """Report all records since the last call to the progress output and the callbacks. Raises CallbackError."""
        untold, self.untold = self.untold, []
        for record, words in untold:
            if words:
                progress.line(record["step"], words)
            for callback in self.callbacks:
                try:
                    callback(record)
                except Exception as error:
                    name = getattr(callback, "__qualname__", type(callback).__qualname__)
                    raise CallbackError(
                        f"the callback {name} failed at step {record['step']} ({type(error).__name__}: {error}); the "
                        f"run's state was saved in {self.picture.parent}: fix the callback and resume the run"
                    ) from error

    def draw(self) -> tuple[str, Path | None]:
        """Draw the loss curve; return a message about it, and its file if it was drawn.

        A failure is not an error, because the run itself is saved.
        """
        try:
            draw_loss_curve(self.metrics.path, self.picture)
        except UsageError as error:  # no matplotlib, a damaged line of metrics
            return f"no picture of the loss curve was drawn: {error}", None
        except Exception as error:  # a full disk, whatever matplotlib raises
            return f"no picture of the loss curve was drawn ({type(error).__name__}: {error})", None
        return f"the loss curve is in {self.picture}", self.picture


class NoReport(Report):
    """The report of a process that leaves the output to another one."""

    def __init__(self, metrics: Path, picture: Path, callbacks: Sequence[Callable[[dict[str, Any]], None]]) -> None:
        super().__init__(metrics, picture, ())
        self.metrics = NoMetrics(metrics)

    def draw(self) -> tuple[str, Path | None]:
        return "", None
