"""The loss curve as a picture. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from ...errors import missing_extra
from ...files import atomic_write
from .metrics import read_metrics


def require_matplotlib() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "the picture of the loss curve") from error
    del matplotlib


def draw_loss_curve(metrics: Path, picture: Path) -> None:
    """Draw the training and validation loss from a metrics file as a PNG file.

    Raises MissingExtraError without matplotlib, CheckpointError for damaged metrics, OSError.
    """
    records = list(read_metrics(metrics))
    with atomic_write(picture) as file:
        draw_losses(records, file)


def draw_losses(records: list[dict[str, Any]], file: IO[bytes]) -> None:
    """Draw records of a metrics file into an open PNG file. Raises MissingExtraError, OSError."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")  # no pyplot: no window, no global state
    axes = figure.add_subplot()
    for key, label, style in (
        ("loss", "training", {"linewidth": 1.0, "alpha": 0.7}),
        ("validation_loss", "validation", {"linewidth": 2.0, "marker": "o", "markersize": 4}),
    ):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set_title("Loss during training")
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    FigureCanvasAgg(figure).print_png(file)
