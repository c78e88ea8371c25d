"""The page about a training run, or several side by side: `tinygpt report FOLDER...`.

    from tinygpt.report import find_runs, page

    html = page(find_runs(["out/run", "out/sweep"]))

One HTML file, which asks for nothing else and needs no script: result, curves of the loss, learning rate, gradient
norm, speed, the layers' norms, samples, settings.

| file | what is there |
|---|---|
| `runs.py` | what a folder tells: `find_runs`, `Run`, `Records` |
| `chart.py` | line charts as inline SVG, with labels in HTML |
| `heat_map.py` | the layers' norms over the steps |
| `result.py` | how runs ended, in numbers; the table that compares them |
| `page.py`, `style.py` | the page |
"""

from __future__ import annotations

from .page import page
from .runs import Run, find_runs, read_run

__all__ = ["Run", "find_runs", "page", "read_run"]
