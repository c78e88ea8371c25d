"""The statistics of `bias_probe.py`, its table and its picture."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tinygpt.report.chart import Axis, written

MOST_EXACT, DRAWN = 14, 20_000  # pairs up to which p is exact; otherwise so many exchanges are drawn


@dataclass(frozen=True)
class Probe:
    """pairs: of lists of prompts, whose differences are averaged. X, Y: words that may follow, with their names."""

    name: str
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]]
    x: tuple[str, Sequence[str]]
    y: tuple[str, Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """differences: of each pair, in nats. left_out: pairs and words that the model's vocabulary lacks."""

    probe: Probe
    differences: np.ndarray
    left_out: int

    @property
    def mean(self) -> float:
        return float(self.differences.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """In which the mean over all such pairs lies, with 95 % confidence, if these are drawn from them at random."""
        count = len(self.differences)
        half = student_t(count - 1) * float(self.differences.std(ddof=1)) / math.sqrt(count)
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        return exchange_p(self.differences)


@functools.cache
def student_t(freedom: int, confidence: float = 0.95) -> float:
    """The t with P(|T| <= t) = confidence. With t = sqrt(n) tan(a), the density of a is cos(a)^(n - 1), up to a
    factor."""
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, mass / mass[-1], angles)))


def exchange_p(differences: np.ndarray) -> float:
    """The share of exchanges of prompts within pairs whose mean is at least as far from 0: all of them, or a sample."""
    count = len(differences)
    if count <= MOST_EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
    else:
        drawn = np.random.default_rng(0).choice((1, -1), size=(DRAWN, count))
        signs = np.concatenate([np.ones((1, count), int), drawn])  # the one that was found counts as well
    means = np.abs(signs @ differences)
    return float((means >= means[0] - 1e-12 * (1 + means[0])).mean())


# What is shown ----------------------------------------------------------------------------------------


def table(findings: Sequence[Finding]) -> str:
    """A line for each probe."""
    width = max(len(finding.probe.name) for finding in findings)
    lines = [f"{'probe':<{width}}  pairs    mean        95 % interval        p  X - Y"]
    for finding in findings:
        low, high = finding.interval
        words = f"{finding.probe.x[0]} - {finding.probe.y[0]}"
        note = f"; {finding.left_out} left out" if finding.left_out else ""
        lines.append(
            f"{finding.probe.name:<{width}}  {len(finding.differences):>5}  {finding.mean:+.3f}  "
            f"[{low:+.3f}, {high:+.3f}]  {finding.p:7.4f}  {words}{note}"
        )
    return "\n".join(lines)


def picture(findings: Sequence[Finding], title: str) -> str:
    """An SVG: a row for each probe, with the mean, its interval, and each pair as a dot."""
    left, width, row, top = 330, 460, 44, 56
    axis = Axis.of([v for finding in findings for v in (*finding.interval, *finding.differences, 0.0)])

    def at(value: float) -> float:
        return left + width * axis.place(value)

    height = top + row * len(findings) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" font-size="13" '
        'font-family="system-ui, sans-serif"><style>:root { --ink: #1c2430; --paper: #fff; --soft: #5c6773; '
        "--mark: #c8501e } @media (prefers-color-scheme: dark) { :root { --ink: #e5e9ee; --paper: #14181d; "
        "--soft: #9aa7b4; --mark: #ff9a6c } } text { fill: var(--ink) } .soft { fill: var(--soft) }</style>"
        f'<rect width="100%" height="100%" fill="var(--paper)"/><text x="10" y="22" font-weight="600">'
        f"{escape(title)}</text>",
        f'<path d="M{at(0):.1f} {top - 18}V{height - 34}" stroke="var(--soft)" stroke-dasharray="4 3"/>',
    ]
    for i, finding in enumerate(findings):
        y, (begin, end) = top + row * i + 12, finding.interval
        parts += [
            f'<text x="10" y="{y}">{escape(finding.probe.name[:48])}</text>',
            f'<text x="10" y="{y + 15}" class="soft" font-size="11">{escape(finding.probe.x[0])} - '
            f"{escape(finding.probe.y[0])}</text>",
            *(_dot(at(value), y, 2.5, "soft") for value in finding.differences),
            f'<path d="M{at(begin):.1f} {y}H{at(end):.1f}" stroke="var(--mark)" stroke-width="3"/>',
            _dot(at(finding.mean), y, 5, "mark"),
        ]
    low = height - 22
    parts += [
        f'<text x="{at(tick):.1f}" y="{low}" text-anchor="middle" font-size="11">{written(tick)}</text>'
        for tick in axis.ticks()
    ]
    parts.append(
        f'<text x="{left}" y="{low + 15}" class="soft" font-size="11">nats; to the right of 0, X goes with the first '
        "prompt. Small dots: pairs.</text></svg>"
    )
    return "\n".join(parts)


def _dot(x: float, y: float, radius: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y}" r="{radius}" fill="var(--{colour})" opacity="{1 if radius > 3 else 0.6}"/>'
