"""What a run writes down and tells: lines of metrics, calls of the callbacks, lines of progress, the loss curve.

A line of metrics is written at once, for a checkpoint that counts on it. Callbacks and onlookers hear of it later, when
the state that it is about is safe (`Report.tell`): then nobody has been told of what a crash can undo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .metrics import MetricsFile
from .outcome import CallbackError
from .picture import draw_loss_curve
from .progress import Progress


class Report:
    """metrics, picture: the files. callbacks: called with every record of the metrics."""

    def __init__(self, metrics: Path, picture: Path, callbacks: Sequence[Callable[[dict[str, Any]], None]]) -> None:
        self.metrics, self.picture, self.callbacks = MetricsFile(metrics), picture, list(callbacks)
        self.untold: list[tuple[dict[str, Any], str]] = []

    def move_to(self, metrics: Path, picture: Path) -> None:
        """Go on in these files; the metrics must be closed."""
        self.metrics.path, self.picture = metrics, picture

    def record(self, record: dict[str, Any], words: str = "") -> None:
        """Write a line of metrics; `words`: the line of progress that goes with it. Raises OSError."""
        self.metrics.append(record)
        self.untold.append((record, words))

    def tell(self, progress: Progress) -> None:
        """Tell of all records since the last call. Raises CallbackError."""
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
                        f"run is saved in {self.picture.parent} as it was then: mend the callback and resume the run"
                    ) from error

    def draw(self) -> str:
        """Draw the loss curve; a sentence about it. The run is done and saved: no picture is no error of it."""
        try:
            draw_loss_curve(self.metrics.path, self.picture)
        except UsageError as error:  # no matplotlib, a damaged line of metrics
            return f"no picture of the loss curve was drawn: {error}"
        except Exception as error:  # a full disk, whatever matplotlib raises
            return f"no picture of the loss curve was drawn ({type(error).__name__}: {error})"
        return f"the loss curve is in {self.picture}"
