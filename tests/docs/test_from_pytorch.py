"""Every row of docs/from_pytorch.md is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.tables import Row, fits, preamble, rows, shown

ROWS = rows()


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The page's names. The rows run in order, since some set what later ones read."""
    found: dict[str, Any] = {}
    exec(compile(preamble(), "docs/from_pytorch.md", "exec"), found)
    return found


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model in a cache, and no network to fetch one from."""
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_rows(names: dict[str, Any]) -> None:
    wrong = []
    for row in ROWS:
        got = shown(row.ours, names)
        if not fits(row.gives, got):
            wrong.append(f"{row.ours}\n    the page says {row.gives}\n    it is         {got}")
    assert not wrong, "\n".join(wrong)


def test_the_page_has_all_its_rows() -> None:
    headings = [row.heading for row in ROWS]
    assert [headings.count(name) for name in dict.fromkeys(headings)] == [32, 16, 17, 10]


def test_a_wrong_row_is_noticed(names: dict[str, Any]) -> None:
    row = Row("", "", "x.sum(dim=0)", "[5.0, 7.0, 8.0]")
    assert not fits(row.gives, shown(row.ours, names))
    assert fits("3.0...", "3.0000002")
    assert shown("x.view(4)", names).startswith("ShapeError: view: ")
