"""Charts: where things are, what the labels say, what is left of many points."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.helpers import Page
from tinygpt.report.chart import HEIGHT, WIDTH, Axis, Line, chart, colour_class, thinned, written
from tinygpt.report.heat_map import MOST_COLUMNS, heat_maps

POINTS = [(0.0, 4.0), (10.0, 2.0), (20.0, 3.0)]


def paths(html: str, kind: str) -> list[list[tuple[float, float]]]:
    """The points of the paths of a class."""
    found = re.findall(rf'<path class="{kind}" d="M([^"]*)"', html)
    return [[tuple(map(float, point.split())) for point in way.removesuffix("h0").split("L")] for way in found]  # type: ignore[misc]


def test_a_line_is_where_its_points_are() -> None:
    html = chart("A & B", [Line("a<", 0, POINTS, dots=True)])
    Page(html)
    (line,) = paths(html, "c0")
    margin = 0.04 * 2 / (2 * 1.08)
    assert [x for x, _ in line] == [0, WIDTH / 2, WIDTH]
    assert [y for _, y in line] == pytest.approx([HEIGHT * margin, HEIGHT * (1 - margin), HEIGHT / 2], abs=0.06)
    assert paths(html, "c0 dot") == [[point] for point in line]
    assert "<title>a&lt;: 2 at 10</title>" in html
    assert "A &amp; B" in html


def test_labels_are_where_the_axis_is() -> None:
    html = chart("loss", [Line("a", 0, POINTS)])
    ticks = {words: float(share) for share, words in re.findall(r'<span style="bottom:([\d.]+)%">([^<]+)', html)}
    axis = Axis.of([2.0, 4.0])
    assert ticks.keys() == {"2", "2.5", "3", "3.5", "4"}
    for words, share in ticks.items():
        assert share == pytest.approx(100 * axis.place(float(words)), abs=0.01)


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    html = chart("norm", [Line("a", 0, [(0, 0.0), (1, 1.0), (2, 10.0), (3, 100.0)])], log=True)
    (line,) = paths(html, "c0")
    assert [y for _, y in line] == pytest.approx([HEIGHT, HEIGHT / 2, 0])
    assert "logarithmic" in html
    assert chart("norm", [Line("a", 0, [(0, 0.0)]), Line("b", 1, [])], log=True) == ""


def test_one_point_is_a_dot() -> None:
    html = chart("loss", [Line("a", 0, [(5.0, 1.5)])])
    assert paths(html, "c0") == []
    assert len(paths(html, "c0 dot")) == 1


@given(
    st.lists(st.floats(-1e12, 1e12, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-12), min_size=1),
    st.booleans(),
)
def test_every_value_is_on_its_axis(values: list[float], log: bool) -> None:
    values = [abs(x) + 1e-12 for x in values] if log else values
    axis = Axis.of(values, log)
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks()
    assert len(ticks) <= 12
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in ticks)
    assert all(math.isfinite(tick) for tick in ticks)
    Page(chart("x", [Line("a", 0, list(enumerate(values)))], log=log))


def test_many_points_keep_their_extremes() -> None:
    rng = np.random.default_rng(0)
    points = list(enumerate(rng.standard_normal(20_000).tolist()))
    points[7777] = (7777, 100.0)
    points[12_345] = (12_345, -100.0)
    kept = thinned(points)
    assert len(kept) <= 700
    assert {points[7777], points[12_345]} <= set(kept)
    assert list(kept) == sorted(kept)
    assert set(kept) <= set(points)
    assert thinned(points[:700]) == points[:700]


def test_numbers_as_labels() -> None:
    found = [written(x) for x in (0, 0.25, 2000, 1.5e6, 2e9, 3e-5, 1e-3, -2000, 12_345.6, 1e15)]
    assert found == ["0", "0.25", "2,000", "1.5M", "2G", "3e-05", "0.001", "-2,000", "12,346", "1e+15"]


def test_colours_go_on() -> None:
    kinds = [colour_class(i) for i in range(30)]
    assert kinds[:2] == ["c0", "c1"]
    assert kinds[8] == "c0 d1"
    assert len(set(kinds)) == 25
    assert kinds[24:] == ["grey"] * 6


# Heat maps --------------------------------------------------------------------------------------------


def record(ratio: float) -> dict[str, dict[str, float]]:
    return {"a<": {"ratio": ratio, "gradient": 1.0, "weight": 2.0, "update": 0.5}, "b": {"ratio": 1e-3, "weight": 0.0}}


def test_a_ratio_has_the_colour_of_its_distance_from_the_usual_one() -> None:
    html = heat_maps({10: record(1e-3), 20: record(3e-2), 30: record(1e-9), 40: record(0.0)}, "x")
    Page(html)
    first = html[: html.index("</svg>")]
    usual = "".join(f"M{j} {i}h1v1h-1z" for i, j in ((0, 0), (1, 0), (1, 1), (1, 2), (1, 3)))
    assert f'<path class="warm" fill-opacity="0" d="{usual}"/>' in first
    assert '<path class="warm" fill-opacity="1" d="M1 0h1v1h-1z"/>' in first
    assert '<path class="cold" fill-opacity="1" d="M2 0h1v1h-1zM3 0h1v1h-1z"/>' in first
    assert "a&lt;" in html
    assert html.count('<svg viewBox="0 0 4 2"') == 4
    assert "The norms at step 40" in html


def test_a_layer_that_comes_later_has_a_row() -> None:
    html = heat_maps({1: {"a": {"ratio": 1e-3}}, 2: {"a": {"ratio": 1e-3}, "b": {"ratio": 1e-3}}}, "x")
    assert 'd="M0 0h1v1h-1zM1 0h1v1h-1zM1 1h1v1h-1z"' in html
    Page(heat_maps({1: {"a": {}}}, "x"))


def test_many_records_are_thinned_to_the_last() -> None:
    html = heat_maps({step: record(1e-3) for step in range(1, 1001)}, "x")
    assert f'viewBox="0 0 {MOST_COLUMNS} 2"' in html
    assert "<span>step 1,000</span>" in html
