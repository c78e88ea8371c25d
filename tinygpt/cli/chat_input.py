'''What the user of `tinygpt chat` enters: messages and commands, of one line or of several.

A line is a message, or a command if it begins with a slash. Several lines become one message if each but the last ends
in a backslash, as in llama.cpp and in shells, or if they stand between two """, as in ollama. A message of several
lines, or in quotes, is never a command, so it may begin with a slash. The same holds for lines from a pipe.
'''

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import NamedTuple

from ..console import Lenient
from ..errors import UsageError

QUOTES = '"""'
SYSTEM = "/system"  # the one command whose text may have several lines


class Entry(NamedTuple):
    """A message or, if `command` names one (such as /system), the text of that command."""

    text: str
    command: str | None = None


def note(text: str) -> None:
    """A message about the dialogue, not part of it: on stderr, so that a pipe receives only the answers."""
    print(f"[{text}]", file=Lenient(sys.stderr), flush=True)


def entries(help: str) -> Iterator[Entry]:
    """What is entered, until the input ends. help: shown first in a terminal. Raises UsageError for bytes not UTF-8."""
    if sys.stdin is None:
        return
    unfinished = Unfinished()
    for line in _typed(help, unfinished) if sys.stdin.isatty() else _piped():
        if (entry := unfinished.add(line)) is not None:
            yield entry
    if not sys.stdin.isatty() and (entry := unfinished.end()) is not None:  # the end of a file ends its last message
        yield entry


class Unfinished:
    """The lines of an entry that continues."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._lines: list[str] = []
        self._command: str | None = None
        self._quoted = False

    def __bool__(self) -> bool:
        return self._quoted or bool(self._lines)

    def add(self, line: str) -> Entry | None:
        """The entry that this line completes, or None if there are more lines to come."""
        if self._quoted:
            return self._inside(line)
        if not self._lines:
            word, _, rest = line.strip().partition(" ")
            begin = rest.lstrip() if word == SYSTEM else line.strip()
            if begin.startswith(QUOTES):
                self._command, self._quoted = SYSTEM if word == SYSTEM else None, True
                return self._inside(begin[len(QUOTES) :], first=True)
        if line.endswith("\\"):
            self._lines.append(line[:-1])
            return None
        self._lines.append(line)
        return self.end()

    def _inside(self, line: str, first: bool = False) -> Entry | None:
        """A line of a block. The line breaks after the opening and before the closing quotes are not part of it."""
        closed = line.rstrip().endswith(QUOTES)
        line = line.rstrip()[: -len(QUOTES)] if closed else line
        if line or not (first or closed):
            self._lines.append(line)
        return self.end() if closed else None

    def end(self) -> Entry | None:
        """The entry so far, or None if there is nothing."""
        if not self:
            return None
        text = "\n".join(self._lines)
        found = Entry(text, self._command)
        if not self._quoted and text.lstrip().startswith("/"):
            word, _, rest = text.strip().partition(" ")
            if "\n" not in text or word == SYSTEM:  # pasted lines that begin with a path are not a command
                found = Entry(rest.strip(), word)
        self.clear()
        return found


def _piped() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8")
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the standard input is not UTF-8 text: {error}") from error


def _typed(help: str, unfinished: Unfinished) -> Iterator[str]:
    """Lines typed in a terminal, with arrow keys and history where `readline` exists."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (input() uses it once it is imported)
    note(help)
    while True:
        try:
            yield input("... " if unfinished else "> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            note("The message is dropped." if unfinished else "Ctrl-D or /quit quits.")
            unfinished.clear()
