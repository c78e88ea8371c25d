"""From what a user names to files: files, folders, patterns such as `books/*.txt`, and "-", the standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError
from ..files import explain_os_errors, shown
from .opening import COMPRESSED, STDIN, suffix
from .rows import DELIMITERS

# What a folder is searched for. A .json there is more often somebody's settings than rows of text; named, it is read.
TEXTS = (".txt", ".md")
IN_FOLDERS = (*TEXTS, ".jsonl", ".ndjson", *DELIMITERS)


def find_files(names: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The files that are meant, each once, those of a folder in the order of their paths.

    A folder stands for the texts and tables in it and below it, hidden files left out. A file that is named may have
    any name: what is no table is read as plain text. Raises UsageError for a name that nothing has, a folder without
    text and a pattern that matches nothing.
    """
    found: dict[str, str] = {}  # by where a file really is, because a folder and a pattern may both name it
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
