"""Heat maps of the layers' norms: a row for each layer, a column for each recorded step.

Update / weight is shown against 1e-3: colourless there, of one colour where the updates are smaller, of another where
they are larger, at full strength from a factor of 30 on. The norms are shown between the smallest and the largest of
the map, by their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from .chart import written

USUAL = 1e-3  # update / weight
FACTOR = 30.0  # at full colour
LEVELS = 8  # of strength
MOST_COLUMNS = 80
NORMS = {
    "ratio": ("update / weight", "How large each update is relative to its weights. Blue: smaller than 1e-3; "
              "orange: larger."),
    "gradient": ("gradient", "Norm of the layer's gradient, before clipping."),
    "update": ("update", "Norm of what the optimizer changed in this step."),
    "weight": ("weight", "Norm of the layer's weights after the step."),
}  # fmt: skip
Layers = Mapping[int, Mapping[str, Mapping[str, float]]]


def heat_maps(layers: Layers, name: str) -> str:
    """The four maps of a run, one of which is shown at a time, and the last record as a table.

    layers: step -> layer -> norm -> value. name: unique on the page.
    """
    steps = _columns(list(layers))
    rows = list(dict.fromkeys(layer for step in steps for layer in layers[step]))
    inputs = "".join(
        f'<input type="radio" name="{name}" id="{name}-{norm}"{" checked" if i == 0 else ""}>'
        f'<label for="{name}-{norm}">{title}</label>'
        for i, (norm, (title, _)) in enumerate(NORMS.items())
    )
    panels = "".join(f'<div class="panel">{_map(layers, steps, rows, norm)}</div>' for norm in NORMS)
    return f'<div class="tabs">{inputs}{panels}</div>{_table(layers, rows)}'


def _columns(steps: list[int]) -> list[int]:
    """At most `MOST_COLUMNS` of the steps, evenly, with the last."""
    if len(steps) <= MOST_COLUMNS:
        return steps
    return [steps[(i + 1) * len(steps) // MOST_COLUMNS - 1] for i in range(MOST_COLUMNS)]


def _map(layers: Layers, steps: Sequence[int], rows: Sequence[str], norm: str) -> str:
    cells = {
        (i, j): layers[step][layer][norm]
        for j, step in enumerate(steps)
        for i, layer in enumerate(rows)
        if norm in layers[step].get(layer, {})
    }
    places, key = _by_ratio(cells) if norm == "ratio" else _by_size(cells)
    paths = (
        f'<path class="{kind}" fill-opacity="{strength / LEVELS:.3g}" d="{_cells(at)}"/>'
        for (kind, strength), at in sorted(places.items())
    )
    names = "".join(f"<span>{escape(layer)}</span>" for layer in rows)
    return (
        f'<p class="soft">{NORMS[norm][1]}</p><div class="heat" style="--rows:{len(rows)}"><div class="names">{names}'
        f'</div><svg viewBox="0 0 {len(steps)} {len(rows)}" preserveAspectRatio="none" role="img" '
        f'aria-label="{NORMS[norm][0]} of each layer">{"".join(paths)}</svg>'
        f'<div class="ends soft"><span>step {steps[0]:,}</span><span>step {steps[-1]:,}</span></div></div>{key}'
    )


def _cells(places: list[tuple[int, int]]) -> str:
    return "".join(f"M{j} {i}h1v1h-1z" for i, j in places)


Cells = Mapping[tuple[int, int], float]
Places = dict[tuple[str, int], list[tuple[int, int]]]


def _by_ratio(cells: Cells) -> tuple[Places, str]:
    places: Places = {}
    for at, value in cells.items():
        share = math.log(value / USUAL) / math.log(FACTOR) if value > 0 else -1.0
        strength = min(LEVELS, round(LEVELS * abs(share)))
        places.setdefault(("cold" if share < 0 else "warm", strength), []).append(at)
    marks = [("cold", 8, f"{USUAL / FACTOR:.2g} or less"), ("cold", 4, f"{USUAL / math.sqrt(FACTOR):.2g}"),
             ("cold", 0, f"{USUAL:g}"), ("warm", 4, f"{USUAL * math.sqrt(FACTOR):.2g}"),
             ("warm", 8, f"{USUAL * FACTOR:.2g} or more")]  # fmt: skip
    return places, _key(marks)


def _by_size(cells: Cells) -> tuple[Places, str]:
    above = [value for value in cells.values() if value > 0]
    low, high = (min(above), max(above)) if above else (1.0, 1.0)
    width = math.log(high / low) or 1.0
    places: Places = {}
    for at, value in cells.items():
        strength = 1 + round((LEVELS - 1) * math.log(value / low) / width) if value > 0 else 0
        places.setdefault(("size", strength), []).append(at)
    middle = math.sqrt(low) * math.sqrt(high)
    return places, _key([("size", 1, f"{low:.2g}"), ("size", 4, f"{middle:.2g}"), ("size", 8, f"{high:.2g}")])


def _key(marks: Sequence[tuple[str, int, str]]) -> str:
    parts = (
        f'<span><svg viewBox="0 0 1 1"><path class="{kind}" fill-opacity="{strength / LEVELS:.3g}" d="M0 0h1v1h-1z"/>'
        f"</svg>{words}</span>"
        for kind, strength, words in marks
    )
    return f'<p class="key boxes">{"".join(parts)}</p>'


def _table(layers: Layers, rows: Sequence[str]) -> str:
    step = max(layers)
    return (
        f'<details><summary>The norms at step {step:,}</summary><div class="wide"><table><thead><tr><th>layer</th>'
        + "".join(f"<th>{title}</th>" for title, _ in NORMS.values())
        + f"</tr></thead><tbody>{''.join(_rows(layers[step], rows))}</tbody></table></div></details>"
    )


def _rows(last: Mapping[str, Mapping[str, float]], rows: Sequence[str]) -> Iterator[str]:
    for layer in rows:
        found = last.get(layer, {})
        cells = (f"<td class=number>{written(found[norm]) if norm in found else '-'}</td>" for norm in NORMS)
        yield f"<tr><th>{escape(layer)}</th>{''.join(cells)}</tr>"
