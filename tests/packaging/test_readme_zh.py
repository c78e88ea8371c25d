"""README.zh.md is README.md in Chinese, whole: the same commands, code, links, figures and headings."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HAN = re.compile("[\u4e00-\u9fff]")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(name: str) -> list[str]:
    """The blocks of commands and code without their comments, and the names of the map without what they mean."""
    found = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text(name), re.DOTALL | re.M):
        if language == "text":
            found += re.findall(r"^[├└]── (?:\S+, )*\S+|^\w+/", block, re.M)
            continue
        found += [re.sub(r" +#.*", "", line) for line in block.splitlines()]
    return found


def outside_code(name: str) -> str:
    return re.sub(r"^```.*?^```$|<!--.*?-->", "", text(name), flags=re.DOTALL | re.M)


def test_the_same_commands_code_and_map() -> None:
    assert len(code("README.md")) > 40
    assert code("README.zh.md") == code("README.md")


def test_the_same_spans_links_and_headings() -> None:
    english, chinese = outside_code("README.md"), outside_code("README.zh.md")
    only_here = {"`build/site/zh`", "README.md"}  # where the Chinese site is; each of the two leads to the other
    for pattern in (r"`[^`]+`", r"\]\(([^)]+)\)"):
        wanted = sorted(found for found in re.findall(pattern, english) if found != "README.zh.md")
        assert sorted(found for found in re.findall(pattern, chinese) if found not in only_here) == wanted
    assert "](README.zh.md)" in english
    assert "](README.md)" in chinese
    for pattern in (r"^#+ ", r"^- ", r"^\|.*\|$"):
        assert len(re.findall(pattern, chinese, re.M)) == len(re.findall(pattern, english, re.M))


def test_the_same_figures() -> None:
    def figures(name: str) -> list[str]:
        return re.findall(r"\d+(?:\.\d+)*", re.sub(r"`[^`]*`", "", outside_code(name)))

    assert sorted(figures("README.zh.md")) == sorted(figures("README.md"))


def test_every_heading_item_and_row_is_chinese() -> None:
    for line in outside_code("README.zh.md").splitlines():
        if re.match(r"#+ (?!tinygpt)|- ", line):
            assert HAN.search(line), line
