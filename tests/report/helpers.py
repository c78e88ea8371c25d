"""Folders of runs, written by hand, and a page as its elements."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from tests import html_page


class Page(html_page.Page):
    """A page of a report."""

    @property
    def tooltips(self) -> list[str]:
        """What the dots and lines of the charts say."""
        return self.of("title")[1:]

    @property
    def table(self) -> dict[str, str]:
        """The rows with one value: name -> value."""
        cells = [(tag, text) for tag, text in self.texts if tag in ("th", "td")]
        pairs = itertools.pairwise(cells)
        return {name: value for (first, name), (second, value) in pairs if (first, second) == ("th", "td")}


def write_run(folder: Path, records: list[dict[str, Any]], config: str = "", end: str = "") -> Path:
    """A folder with this metrics file. end: what follows its last line."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + end, encoding="utf-8")
    if config:
        (folder / "config.toml").write_text(config, encoding="utf-8")
    return folder


def usual(steps: int = 40, loss: float = 3.0) -> list[dict[str, Any]]:
    """The records of a run: a training loss every 10 steps, evaluations every 20."""
    found: list[dict[str, Any]] = [{"step": 0, "validation_loss": loss + 1}]
    for step in range(10, steps + 1, 10):
        found.append({
            "step": step, "loss": loss + 10 / step, "lr": 1e-3 * step, "grad_norm": 1 + 1 / step, "tokens": 96 * step,
            "seconds": 0.5 * step, "tokens_per_second": 190.0 + step, "mfu": 0.1, "seconds_left": 1.0,
            "energy_wh_estimate": 0.01 * step,
        })  # fmt: skip
        if step % 20 == 0:
            found.append({"step": step, "validation_loss": loss + 8 / step})
    return found


def layers(step: int, ratio: float) -> dict[str, Any]:
    """A record of two layers, the second with updates that are ten times as large."""
    row = {"gradient": 0.5, "weight": 10.0, "update": 10 * ratio, "ratio": ratio}
    return {"step": step, "layers": {"wte": row, "h.0.attn": row | {"update": 100 * ratio, "ratio": 10 * ratio}}}
