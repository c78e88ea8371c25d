"""The functions of Python's standard library, as rows for two recipes. Their number depends on the Python version."""

from __future__ import annotations

import argparse
import ast
import os
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinygpt.errors import UsageError
from tinygpt.files import shown

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Function:
    """file: where it is; head: `def f(x):`; doc: its docstring, dedented; body: the rest, dedented."""

    file: str
    head: str
    doc: str
    body: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the recipes on functions."""
    words = "read the Python files in this folder instead of the standard library"
    parser.add_argument("--library", dest="folder", metavar="FOLDER", help=words)


def functions(folder: str | None = None) -> Iterator[Function]:
    """Every function and method with a docstring, of the standard library or of a folder, file by file.

    Raises UsageError if the folder is not there.
    """
    home = Path(sysconfig.get_paths()["stdlib"] if folder is None else folder).expanduser()
    if not home.is_dir():
        raise UsageError(f"there is no folder {shown(home)} with Python files")
    for place, folders, files in os.walk(home):
        folders[:] = sorted(set(folders) - _LEFT_OUT)  # os.walk goes into what is left
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(place, file)
                yield from _in_file(path, path.relative_to(home).as_posix())


def _in_file(path: Path, name: str) -> Iterator[Function]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):  # a file of another Python, or none that can be read
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (doc := ast.get_docstring(node)):
            rest = node.body[1:]
            head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
            body = "\n".join(lines[rest[0].lineno - 1 : rest[-1].end_lineno]) if rest else ""
            yield Function(name, head, doc, textwrap.dedent(body).strip())
