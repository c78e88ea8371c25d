"""A model has all its parts; and for each part that is forgotten there is a sentence that names it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import tinygpt

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh.md")
FILES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tinygpt").glob("*.py")}


def models(files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(file, class) of every language model, those on top of a GPT included."""
    for stem, text in files.items():
        for node in ast.parse(text).body if "(LanguageModel)" in text or "(GPT)" in text else ():
            if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & {"LanguageModel", "GPT"}:
                yield stem, node.name


def missing(files: Mapping[str, str]) -> Iterator[str]:
    for stem, name in models(files):
        if name not in tinygpt.__all__ or not hasattr(tinygpt, name):
            yield f"tinygpt/{stem}.py defines {name}, which tinygpt/__init__.py does not export"
        if not (ROOT / "tests" / "gpt" / f"test_{stem}.py").exists():
            yield f"tinygpt/{stem}.py has no tests: write tests/gpt/test_{stem}.py, after test_language_model.py"
        for page in READMES:
            if f"{stem}.py" not in (ROOT / page).read_text(encoding="utf-8"):
                yield f"the map of {page} does not show {stem}.py of tinygpt/"


def test_no_part_is_missing() -> None:
    assert ("gpt", "GPT") in models(FILES)
    assert not list(missing(FILES)), "\n".join(missing(FILES))


def test_a_part_that_is_forgotten_is_named() -> None:
    assert list(missing({"average": "class Average(LanguageModel): ..."})) == [
        "tinygpt/average.py defines Average, which tinygpt/__init__.py does not export",
        "tinygpt/average.py has no tests: write tests/gpt/test_average.py, after test_language_model.py",
        "the map of README.md does not show average.py of tinygpt/",
        "the map of README.zh.md does not show average.py of tinygpt/",
    ]
