"""The README's Python runs as it stands, block after block, and what it points to is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tinygpt

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.M)


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out == "(4, 8) (8, 16)\n"
    assert names["logits"].shape == (8, 64, 65)
    assert names["ids"].shape == (1, 25)
    assert names["state"].keys() == dict(names["model"].named_parameters()).keys()
    assert not list(tmp_path.iterdir())


def test_the_map_is_of_what_is_there() -> None:
    (tree,) = [block for block in blocks("README.md", "text") if block.startswith("tinygpt/")]
    inside = re.findall(r"^[├└]── (\S+)", tree, re.M)
    outside = re.findall(r"^(\w+/)", tree, re.M)
    assert outside == ["tinygpt/", "examples/", "tests/", "benchmarks/"]
    assert all((ROOT / path).exists() for path in (*outside, *(f"tinygpt/{name}" for name in inside)))
    modules = {path.name + "/" * path.is_dir() for path in (ROOT / "tinygpt").iterdir()}
    small = {
        "__init__.py",
        "__main__.py",
        "py.typed",
        "checks.py",
        "console.py",
        "errors.py",
        "files.py",
        "random.py",
        "seams.py",
        "typing.py",
    }
    assert modules - small - {"__pycache__/"} == set(inside)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:tinygpt|tests|benchmarks|examples|docs|\.ci)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_environment_variables_are_those_that_are_read() -> None:
    """Every TINYGPT_... in the sources is in the README or is for working on tinygpt, and the other way round."""
    files = [ROOT / "setup.py", *(ROOT / "tinygpt").rglob("*.py")]
    read = {name for file in files for name in re.findall(r"TINYGPT_[A-Z]\w+", file.read_text(encoding="utf-8"))}
    told = set(re.findall(r"TINYGPT_[A-Z]\w+", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert told == read - {"TINYGPT_SANITIZE", "TINYGPT_ANNOTATE"}


def test_the_picture_and_the_version() -> None:
    assert (ROOT / "docs" / "loss_curve.png").stat().st_size < 60_000
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    released = [heading for heading in headings if heading != "[Unreleased]"]
    assert re.fullmatch(rf"\[{re.escape(tinygpt.__version__)}\] - \d{{4}}-\d\d-\d\d", released[0])
    assert headings in (released, ["[Unreleased]", *released])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tinygpt.__version__"}
