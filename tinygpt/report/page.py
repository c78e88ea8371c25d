"""The page of `tinygpt report`: one HTML file about one run, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from .chart import Line, Points, chart, colour_class, legend
from .heat_map import heat_maps
from .result import FIGURES, SHOWN_ELSEWHERE, differing, evaluations_of, pair, result, said, table
from .runs import Point, Run

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # no requests, no scripts
GENERATOR = '<meta name="generator" content="tinygpt report">'
MOST_SAMPLES, MOST_CHARACTERS = 12, 3000
MOST_HEAT_MAPS = 8


def page(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    from .style import STYLE

    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    sections = (result(runs), _loss(runs), _figures(runs), _layers(runs), _samples(runs), _settings(runs))
    body = "\n".join(part for section in sections for part in section)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f"<title>{escape(title)}: training report</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


# Curves -----------------------------------------------------------------------------------------------


def _scales(run: Run) -> dict[str, Callable[[list[Point]], Points]]:
    """What the horizontal axis may count: the points of a figure on it, by title."""
    found: dict[str, Callable[[list[Point]], Points]] = {"step": lambda points: points}
    for name, title, unit in (("tokens", "tokens", 1.0), ("seconds", "minutes of training", 60.0)):
        known = [(0, 0.0), *run.records.of(name)]
        if len(known) > 1:
            steps, values = np.array(known).T

            def scaled(points: list[Point], steps: Any = steps, values: Any = values / unit) -> Points:
                return [(float(np.interp(step, steps, values)), y) for step, y in points]

            found[title] = scaled
    return found


def _loss(runs: Sequence[Run]) -> Iterator[str]:
    """The curves of the loss by steps and, with radio buttons, by tokens and time."""
    if not any(run.records.of(name) for run in runs for name in ("loss", "validation_loss")):
        return
    yield "<h2>Loss</h2>"
    scales = [_scales(run) for run in runs]
    titles = [title for title in scales[0] if all(title in found for found in scales)]
    alone = len(runs) == 1
    inputs, panels = [], []
    for i, title in enumerate(titles):
        checked = " checked" if i == 0 else ""
        inputs.append(f'<input type="radio" name="x" id="x{i}"{checked}><label for="x{i}">{title}</label>')
        lines = []
        for colour, (run, found) in enumerate(zip(runs, scales, strict=True)):
            training, validation = (found[title](run.records.of(name)) for name in ("loss", "validation_loss"))
            name = "" if alone else f"{run.name}: "
            lines.append(Line(f"{name}training", colour, training, thin=True))
            lines.append(Line(f"{name}validation", colour + alone, validation, dots=True))
        lines.sort(key=lambda line: not line.thin)  # validation on top
        panels.append(f'<div class="panel">{chart("Loss", lines, x=title, unit="nats")}</div>')
    yield f'<div class="tabs first">{"".join(inputs)}{"".join(panels)}</div>'
    yield _legend(runs)


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return legend([("training", f"{colour_class(0)} thin"), ("validation", colour_class(1))])
    lines = legend([(run.name, colour_class(i)) for i, run in enumerate(runs)])
    return f"{lines}<p class=soft>Thick, with dots: validation; thin: training.</p>"


def _figures(runs: Sequence[Run]) -> Iterator[str]:
    """A small chart of each other figure."""
    evaluations = evaluations_of(runs)
    others = {name: None for run in runs for name in run.records.figures}
    names = [*evaluations, *FIGURES, *others]
    drawn = []
    for name in dict.fromkeys(names):
        title, unit, log = FIGURES.get(name, (name.replace("_", " ").capitalize(), "", False))
        if name in SHOWN_ELSEWHERE:
            continue
        dots = name in evaluations
        first = int(dots and len(runs) == 1)  # the colour of validation
        lines = [Line(run.name, first + i, run.records.of(name), dots=dots) for i, run in enumerate(runs)]
        drawn.append(chart(title, lines, unit=unit, log=log))
    if any(drawn):
        yield f'<h2>Over the steps</h2><div class="charts">{"".join(drawn)}</div>'


# Layers, samples, settings ----------------------------------------------------------------------------


def _layers(runs: Sequence[Run]) -> Iterator[str]:
    watched = [run for run in runs if run.records.layers]
    if not watched:
        return
    yield "<h2>Layers</h2><p>Norms of each layer: a column for each recorded step, the first one on the left.</p>"
    for i, run in enumerate(watched[:MOST_HEAT_MAPS]):
        heading = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        yield heading + heat_maps(run.records.layers, f"layers{i}")
    if len(watched) > MOST_HEAT_MAPS:
        left = len(watched) - MOST_HEAT_MAPS
        yield f"<p class=soft>{left} more runs recorded their layers: make a report of fewer runs to see them.</p>"


def _samples(runs: Sequence[Run]) -> Iterator[str]:
    if not any(run.records.samples for run in runs):
        return
    yield "<h2>Samples</h2>"
    for run in runs:
        samples = list(run.records.samples.items())
        if not samples:
            continue
        kept = _evenly(samples, MOST_SAMPLES)
        note = f" ({len(kept)} of {len(samples)})" if len(kept) < len(samples) else ""
        shown = "".join(f"<h3>Step {step:,}</h3><pre>{escape(_cut(text))}</pre>" for step, text in kept)
        if len(runs) == 1:
            yield f"<p class=soft>{note}</p>{shown}" if note else shown
        else:
            yield f"<details><summary>{escape(run.name)}{note}</summary>{shown}</details>"


def _evenly(values: list[Any], most: int) -> list[Any]:
    """At most `most` of the values, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _cut(text: str) -> str:
    """A sample without control characters, at most `MOST_CHARACTERS` of it."""
    kept = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}\u2026"
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in kept)


def _settings(runs: Sequence[Run]) -> Iterator[str]:
    """All settings of one run; for several, those that they share, since the table of runs has the others."""
    apart = differing(runs)
    shared = [(name, value) for name, value in runs[0].settings.items() if name not in apart]
    if not shared:
        return
    rows = (pair(name, said(value)) for name, value in shared)
    yield f"<h2>Settings{' that all runs share' if len(runs) > 1 else ''}</h2>{table((), rows)}"
