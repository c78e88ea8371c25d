"""The README's Python runs as it stands, block after block, and what it points to is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import tinygpt

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "README.zh.md", "CONTRIBUTING.md")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.M)


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    """The one short example; the others are on docs/library.md (tests/docs/test_pages.py)."""
    (block,) = blocks("README.md", "python")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == "(4, 8)\n"


def test_the_map_is_of_what_is_there() -> None:
    (tree,) = [block for block in blocks("README.md", "text") if block.startswith("tinygpt/")]
    listed = re.findall(r"^[├└]── ((?:\S+, )*\S+)", tree, re.M)
    inside = [name for names in listed for name in names.split(", ")]
    outside = re.findall(r"^(\w+/)", tree, re.M)
    assert outside == ["tinygpt/", "docs/", "examples/", "tests/", "benchmarks/"]
    assert all((ROOT / path).exists() for path in (*outside, *(f"tinygpt/{name}" for name in inside)))
    modules = {path.name + "/" * path.is_dir() for path in (ROOT / "tinygpt").iterdir()}
    of_any_package = {"__init__.py", "__main__.py", "py.typed", "__pycache__/"}
    missing = sorted(modules - of_any_package - set(inside))
    assert not missing, f"the map of README.md does not show {', '.join(missing)} of tinygpt/"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:tinygpt|tests|benchmarks|examples|docs|\.ci)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_environment_variables_are_those_that_are_read() -> None:
    """Every TINYGPT_... in the sources is on the page about installing or for working on tinygpt, and vice versa."""
    files = [ROOT / "setup.py", *(ROOT / "tinygpt").rglob("*.py")]
    read = {name for file in files for name in re.findall(r"TINYGPT_[A-Z]\w+", file.read_text(encoding="utf-8"))}
    told = set(re.findall(r"TINYGPT_[A-Z]\w+", (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")))
    assert told == read - {"TINYGPT_SANITIZE", "TINYGPT_ANNOTATE"}


def test_the_picture_and_the_version() -> None:
    assert (ROOT / "docs" / "loss_curve.png").stat().st_size < 60_000
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150  # the rest is on the pages
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    released = [heading for heading in headings if heading != "[Unreleased]"]
    assert re.fullmatch(rf"\[{re.escape(tinygpt.__version__)}\] - \d{{4}}-\d\d-\d\d", released[0])
    assert headings in (released, ["[Unreleased]", *released])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tinygpt.__version__"}
