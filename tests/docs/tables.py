"""Rows of the tables in docs/from_pytorch.md, and what their code gives."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "from_pytorch.md"


class Row(NamedTuple):
    heading: str
    theirs: str
    ours: str
    gives: str


def preamble() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)
    return block


def rows() -> list[Row]:
    """Every row of every table. In the last one, what is written and what happens are the first two columns."""
    found, heading = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            first, second, third = cells
            if third.startswith("`") and not heading.startswith("Where"):
                found.append(Row(heading, first.strip("`"), second.strip("`"), third.strip("`")))
            else:
                found.append(Row(heading, "", first.strip("`"), second.strip("`")))
    return found


def shown(code: str, names: dict[str, Any]) -> str:
    """What the page shows for a piece of code: the value, with a tensor or an array as a list; or the error."""
    try:
        value = eval(compile(ast.parse(code, mode="eval"), "docs/from_pytorch.md", "eval"), names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    array = getattr(value, "data", value)
    return str(array.tolist()) if hasattr(array, "tolist") else repr(value)


def fits(want: str, got: str) -> bool:
    """As a doctest: `...` stands for anything."""
    return doctest.OutputChecker().check_output(want + "\n", got + "\n", doctest.ELLIPSIS)
