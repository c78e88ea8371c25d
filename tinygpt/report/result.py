"""The result of a run in words and numbers, and the table that compares several."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from .chart import colour_class, written
from .runs import Run

# The figures of training, in the order of the page: name -> title, unit, whether the axis is logarithmic.
FIGURES = {
    "lr": ("Learning rate", "", False),
    "grad_norm": ("Gradient norm", "before clipping", True),
    "tokens_per_second": ("Speed", "tokens/s", False),
    "mfu": ("Share of the processor's peak", "", False),
    "loss_scale": ("Loss scale", "of float16", True),
}  # fmt: skip
SHOWN_ELSEWHERE = frozenset(
    {"loss", "validation_loss", "tokens", "seconds", "seconds_left", "energy_wh", "energy_wh_estimate"}
)


def table(head: Sequence[str], rows: Iterator[str] | Sequence[str]) -> str:
    """head: the column titles; empty for none. rows: each a <tr>."""
    top = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def pair(name: str, words: str) -> str:
    return f"<tr><th>{escape(name)}</th><td class=long>{escape(words)}</td></tr>"


# Result -----------------------------------------------------------------------------------------------


def result(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) == 1:
        yield f"<p class=soft>{escape(runs[0].progress)}.</p>"
        yield table((), [pair(*fact) for fact in _facts(runs[0])])
    else:
        yield "<p class=soft>The run with the lowest validation loss is in bold.</p>"
        yield _comparison(runs)
    for run in runs:
        if run.records.damaged:
            count = run.records.damaged
            yield (f"<p>{count} damaged line{'s' if count > 1 else ''} of {escape(run.name)}/metrics.jsonl "
                   f"{'are' if count > 1 else 'is'} left out.</p>")  # fmt: skip
        for step, changed in run.records.changes.items():
            yield f"<p>{_of(run, runs)}At step {step:,} the run was resumed with {escape(_changes(changed))}.</p>"


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f"{escape(run.name)}: " if len(runs) > 1 else ""


def _changes(changed: dict[str, Any]) -> str:
    parts = []
    for name, pair in changed.items():
        before, now = pair if isinstance(pair, list) and len(pair) == 2 else ("?", pair)
        parts.append(f"{name} {now} instead of {before}")
    return ", ".join(parts)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """The outcome of a run, as far as it is known."""
    records = run.records
    if run.best is not None:
        step, loss = run.best
        yield "best validation loss", f"{loss:.4f}, at step {step:,}{_perplexity(run, loss)}"
        last = records.of("validation_loss")[-1]
        yield "last validation loss", f"{last[1]:.4f}, at step {last[0]:,}"
        for name in records.figures:
            if is_evaluation(run, name):
                value = records.figures[name].get(step)
                if value is not None:
                    yield f"{name.replace('_', ' ')} there", f"{value:.4f}"
    if records.of("loss"):
        step, loss = records.of("loss")[-1]
        yield "last training loss", f"{loss:.4f}, at step {step:,}"
    if (tokens := run.total("tokens")) is not None:
        yield "tokens", written(tokens)
    if (seconds := run.total("seconds")) is not None:
        yield "time in training", duration(seconds)
    if (left := run.total("seconds_left")) and run.holder is not None:
        yield "time left", duration(left)
    speeds = [value for _, value in records.of("tokens_per_second")]
    if speeds:
        yield "speed", f"{float(np.median(speeds)):,.0f} tokens/s (median)"
    for name, words in (("energy_wh", "energy"), ("energy_wh_estimate", "energy (an estimate)")):
        if (energy := run.total(name)) is not None:
            yield words, f"{energy:.3g} Wh"


def _perplexity(run: Run, loss: float) -> str:
    """Only a language model has one."""
    labels = any(is_evaluation(run, name) for name in run.records.figures)
    return "" if labels or loss > 50 else f" (perplexity {math.exp(loss):.4g})"


def duration(seconds: float) -> str:
    """3.2 s, 5 min 10 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def _comparison(runs: Sequence[Run]) -> str:
    """A row for each run: its colour, how it ended, its losses, and the settings in which the runs differ."""
    names = differing(runs)
    evaluations = evaluations_of(runs)
    head = ["", "run", "best loss", "at step", *(name.replace("_", " ") for name in evaluations), "time", *names, ""]
    lowest = min((run.best[1] for run in runs if run.best), default=None)
    return table(head, (_comparison_row(i, run, names, evaluations, lowest) for i, run in enumerate(runs)))


def _comparison_row(i: int, run: Run, names: list[str], evaluations: list[str], lowest: float | None) -> str:
    step, loss = run.best or (None, None)
    seconds = run.total("seconds")
    there = [run.records.figures.get(name, {}).get(-1 if step is None else step) for name in evaluations]
    cells = [
        "-" if loss is None else f"{loss:.4f}", "" if step is None else f"{step:,}",
        *("" if value is None else f"{value:.4f}" for value in there),
        "" if seconds is None else duration(seconds), *(said(run.settings.get(name)) for name in names),
    ]  # fmt: skip
    kind = " class=best" if loss is not None and loss == lowest else ""
    swatch = f'<svg class="swatch" viewBox="0 0 14 14"><path class="{colour_class(i)}" d="M0 7H14"/></svg>'
    return (
        f"<tr{kind}><td>{swatch}</td><th>{escape(run.name)}</th>"
        + "".join(f"<td class=number>{escape(cell)}</td>" for cell in cells)
        + f"<td>{escape(run.progress)}</td></tr>"
    )


# Figures and settings ---------------------------------------------------------------------------------


def is_evaluation(run: Run, name: str) -> bool:
    """Whether a figure comes with the validation loss: accuracy, F1."""
    figures = run.records.figures
    with_loss = figures.get("validation_loss", {})
    return name != "validation_loss" and bool(with_loss) and figures.get(name, {}).keys() <= with_loss.keys()


def evaluations_of(runs: Sequence[Run]) -> list[str]:
    names = {name: None for run in runs for name in run.records.figures if is_evaluation(run, name)}
    return [name for name in names if name not in SHOWN_ELSEWHERE and name not in FIGURES]


def said(value: Any) -> str:
    """A setting as a user would write it."""
    if value is None:
        return "-"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.6g}"  # 0.0003, not 0.00030000000000000003
    return value if isinstance(value, str) else json.dumps(value)


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ."""
    names = {name: None for run in runs for name in run.settings}
    return [name for name in names if len({said(run.settings.get(name)) for run in runs}) > 1]
