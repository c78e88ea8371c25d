"""Line charts as HTML and inline SVG, legible at any width, without a script.

The SVG holds lines only, and is stretched to the width of the page (`preserveAspectRatio="none"`, strokes that do not
scale). All text is HTML around it, positioned in percent, so it keeps its size on a narrow screen. Colours are classes
of the style sheet, which defines them for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000, 400  # of the SVG's own coordinates
MOST_POINTS = 700  # of a line; more are drawn as the extremes of intervals
MOST_DOTS = 120
EDGE = 4.0  # percent of the width: a label this near to an end is not centered
Points = Sequence[tuple[float, float]]


@dataclass
class Line:
    """points: (x, y), in the order of x. colour: the number of a colour. thin: a line in the background. dots: mark
    the points, with their values as tooltips."""

    label: str
    colour: int
    points: Points
    thin: bool = False
    dots: bool = False


@dataclass
class Axis:
    """The part of an axis that a chart shows, and how. log: by the logarithm; values are then above 0."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], log: bool = False, margin: float = 0.04) -> Axis:
        """The axis on which all values fit."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            low, high = (low, high) if high > 1.2 * low else (low / 1.2, high * 1.2)
            return cls(low, high, log)
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-30):
            room = abs(low) / 10 or 1.0
            return cls(low - room, high + room) if margin else cls(low, low + 2 * room)
        room = margin * (high - low)
        return cls(low - room, high + room)

    def place(self, value: float) -> float:
        """Where a value is, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values, about `count` of them."""
        if self.log and self.high / self.low >= 20:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1, max(1, (last - first) // count + 1))]
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        ticks = [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [tick for tick in ticks if tick > 0 or not self.log]


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def written(value: float) -> str:
    """A number as a label: 2,000, 1.5M, 0.001, 3e-05."""
    size = abs(value)
    if size >= 1e15 or (0 < size < 1e-4):
        return f"{value:.3g}"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most about `most` points: of each interval of x those with the lowest and the highest y, so spikes stay."""
    if len(points) <= most:
        return points
    low, high = points[0][0], points[-1][0]
    buckets: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        buckets.setdefault(int((point[0] - low) / (high - low or 1) * (most // 2 - 1)), []).append(point)
    kept = []
    for bucket in buckets.values():
        extremes = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
        kept += sorted(extremes)
    return kept


def chart(title: str, lines: Sequence[Line], *, x: str = "step", unit: str = "", log: bool = False) -> str:
    """A figure: what is drawn, its axes, its lines. x: what the horizontal axis counts. log: of the vertical axis.

    A line without points is left out; a logarithmic axis leaves out values that are not above 0. Empty if nothing is
    left to draw.
    """
    shown = [Line(s.label, s.colour, _usable(s.points, log), s.thin, s.dots) for s in lines]
    shown = [line for line in shown if line.points]
    if not shown:
        return ""
    across = Axis.of([px for line in shown for px, _ in line.points], margin=0)
    up = Axis.of([py for line in shown for _, py in line.points], log)
    note = f"{unit}{', ' if unit and log else ''}{'logarithmic' if log else ''}"
    caption = f"{escape(title)}{f' <span class=soft>({escape(note)})</span>' if note else ''}"
    return (
        f'<figure class="chart"><figcaption>{caption}</figcaption><div class="plot">{"".join(_labels(up))}'
        f'{_svg(title, shown, across, up)}</div><div class="across">{"".join(_labels(across, below=True))}</div>'
        f'<div class="axis soft">{escape(x)}</div></figure>'
    )


def _usable(points: Points, log: bool) -> Points:
    return [(px, py) for px, py in points if py > 0] if log else points


def _labels(axis: Axis, below: bool = False) -> Iterator[str]:
    for tick in axis.ticks():
        share = 100 * axis.place(tick)
        if not below:
            yield f'<span style="bottom:{share:.2f}%">{written(tick)}</span>'
        elif share < EDGE or share > 100 - EDGE:  # next to its line instead of below it, inside the page
            side, kept = ("left", share) if share < EDGE else ("right", 100 - share)
            yield f'<span class="edge" style="{side}:{max(0.0, kept):.2f}%">{written(tick)}</span>'
        else:
            yield f'<span style="left:{share:.2f}%">{written(tick)}</span>'


def _svg(title: str, lines: Sequence[Line], across: Axis, up: Axis) -> str:
    grid = "".join(f"M0 {_y(up, tick):.1f}H{WIDTH}" for tick in up.ticks())
    grid += "".join(f"M{_x(across, tick):.1f} 0V{HEIGHT}" for tick in across.ticks())
    parts = [part for line in lines for part in _drawn(line, across, up)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'<path class="grid" d="{grid}"/>{"".join(parts)}</svg>'
    )


def _x(axis: Axis, value: float) -> float:
    return WIDTH * axis.place(value)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT * (1 - axis.place(value))


def _drawn(line: Line, across: Axis, up: Axis) -> Iterator[str]:
    """The path of a line. A zero-length stroke with round ends is a dot that stays round."""
    points = [(_x(across, px), _y(up, py), px, py) for px, py in thinned(line.points)]
    colour = f"{colour_class(line.colour)}{' thin' if line.thin else ''}"
    way = "L".join(f"{px:.1f} {py:.1f}" for px, py, _, _ in points)
    if len(points) > 1:
        yield f'<path class="{colour}" d="M{way}"><title>{escape(line.label)}</title></path>'
    if len(points) == 1 or (line.dots and len(points) <= MOST_DOTS):
        for px, py, real_x, real_y in points:
            words = f"{line.label}: {real_y:.4g} at {written(real_x)}"
            yield f'<path class="{colour} dot" d="M{px:.1f} {py:.1f}h0"><title>{escape(words)}</title></path>'


COLOURS, DASHES = 8, 3


def colour_class(colour: int) -> str:
    """Eight colours, then the same ones dashed, then dotted; after those, grey."""
    if colour >= COLOURS * DASHES:
        return "grey"
    return f"c{colour % COLOURS}" + (f" d{colour // COLOURS}" if colour >= COLOURS else "")


def legend(lines: Sequence[tuple[str, str]]) -> str:
    """The legend of the lines: (label, its classes)."""
    items = (f'<span><svg viewBox="0 0 26 8"><path class="{kind}" d="M0 4H26"/></svg>{escape(label)}</span>'
             for label, kind in lines)  # fmt: skip
    return f'<p class="key">{"".join(items)}</p>'
