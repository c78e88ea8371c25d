"""Find the files that a user names: files, folders, patterns such as `books/*.txt`, and "-", standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError
from ..files import explain_os_errors, shown
from .opening import COMPRESSED, STDIN, suffix
from .rows import DELIMITERS

# The files that count in a folder. A .json there is more often a settings file than a table; it is read if it is named.
TEXTS = (".txt", ".md")
IN_FOLDERS = (*TEXTS, ".jsonl", ".ndjson", *DELIMITERS)


def find_files(names: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The files, each once, those of a folder in the order of their paths.

    A folder stands for all texts and tables in it and its subfolders, except hidden files. A file that is named itself
    may have any name: if it is not a table, it is read as plain text. Raises UsageError for a name that does not exist,
    a folder without text and a pattern that matches nothing.
    """
    found: dict[str, str] = {}  # by real path, because a folder and a pattern may both name a file
    for name in names:
        for path in _files_of(os.fspath(name)):
            found.setdefault(path if path == STDIN else os.path.realpath(path), path)
    return list(found.values())


def _files_of(name: str) -> list[str]:
    if name == STDIN:
        return [name]
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _in_folder(path)
    if not os.path.lexists(path) and glob.has_magic(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if not os.path.isdir(match))
        if not matches:
            raise UsageError(f"no file matches {shown(name)}: check the pattern and the folder it begins in")
        return matches
    with explain_os_errors("read", path):
        os.stat(path)
    return [path]


def _in_folder(folder: str) -> list[str]:
    texts, others = list[str](), list[str]()
    with explain_os_errors("read the folder", folder):
        os.listdir(folder)  # os.walk would pass over a folder that may not be read
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                (texts if suffix(name) in IN_FOLDERS else others).append(os.path.join(place, name))
    if not texts:
        there = f"there are {len(others)} other files, such as {shown(min(others))}" if others else "it has no files"
        raise UsageError(
            f"the folder {shown(folder)} holds no text: expected files that end in {', '.join(IN_FOLDERS)}, perhaps "
            f"with {', '.join(COMPRESSED)} after it, but {there}; a file of another name can be named itself"
        )
    return sorted(texts, key=lambda path: Path(path).parts)
