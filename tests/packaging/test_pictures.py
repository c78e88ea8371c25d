"""The pages in docs/ have their pictures, which are small, and their Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 150_000
TARGET = re.compile(r"""(?:\]\(|src(?:set)?=")((?!https?:)[^)#"]+)""")


@pytest.mark.parametrize("page", ["web_page.md", "inside.md"])
def test_what_a_page_points_to_is_there(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    targets = TARGET.findall(text)
    assert targets
    for target in targets:
        assert (DOCS / target).exists(), target
    for path in re.findall(r"`((?:tinygpt|tests|docs|\.ci)/[\w./]+)`", text):
        assert (DOCS.parent / path).exists(), path


def test_pictures_are_small_and_each_is_shown() -> None:
    pictures = [path for path in sorted((DOCS / "pictures").iterdir()) if path.suffix in (".svg", ".png", ".webp")]
    shown = {target for page in DOCS.glob("*.md") for target in TARGET.findall(page.read_text(encoding="utf-8"))}
    for source in (*DOCS.rglob("*.md"), *(DOCS / "parts").glob("*.py")):
        named = re.findall(r"\{picture\}+ (\w+)", source.read_text(encoding="utf-8"))
        shown |= {f"pictures/{name}.svg" for name in named}
    for picture in pictures:
        assert picture.stat().st_size < MOST_BYTES, picture.name
        assert f"pictures/{picture.name}" in shown, picture.name
    assert len(pictures) >= 6


def test_the_python_of_a_page_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "inside.md").read_text(encoding="utf-8"), re.S | re.M)
    names: dict[str, object] = {}
    exec(compile(block, "inside.md", "exec"), names)
    assert [names[name].shape for name in ("maps", "lens", "why")] == [(2, 2, 5, 5), (3, 5, 256), (5,)]  # type: ignore[attr-defined]
