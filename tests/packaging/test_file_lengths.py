"""A file of the package is short enough to be read in one go, or says why it is not."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES = 300


def without_a_reason(folder: Path) -> list[str]:
    """The files of more than MOST_LINES lines whose docstring does not say why ("Over 300 lines: ...")."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > MOST_LINES and f"Over {MOST_LINES} lines" not in (ast.get_docstring(ast.parse(text)) or ""):
            found.append(f"{path.relative_to(folder.parent)} has {lines} lines: split it, or say why in its docstring")
    return found


def test_a_long_file_says_why() -> None:
    found = without_a_reason(ROOT / "tinygpt")
    assert not found, "\n".join(found)


def test_a_long_file_without_a_reason_is_named(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text('"""What it is for."""\n' + "x = 1\n" * MOST_LINES)
    (tmp_path / "reason.py").write_text('"""What it is for.\n\nOver 300 lines: because."""\n' + "x = 1\n" * MOST_LINES)
    (tmp_path / "short.py").write_text("x = 1\n" * MOST_LINES)
    (sentence,) = without_a_reason(tmp_path)
    assert "long.py has 301 lines" in sentence
