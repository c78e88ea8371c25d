"""Lines become messages and commands."""

from __future__ import annotations

import io
import sys

import pytest

from tinygpt.cli.chat_input import Entry, entries

Q = '"""'


def read(text: str, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return list(entries("help"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n", [Entry("a"), Entry("b")]),
        ("  a  \n\n", [Entry("  a  "), Entry("")]),
        ("/help\n /system be brief \n/\n", [Entry("", "/help"), Entry("be brief", "/system"), Entry("", "/")]),
        # A backslash at the end of a line:
        ("a\\\nb \\\n\nc\n", [Entry("a\nb \n"), Entry("c")]),
        ("/system a\\\nb\n", [Entry("a\nb", "/system")]),
        ("/usr/bin\\\nis a path\n", [Entry("/usr/bin\nis a path")]),
        ("a\\", [Entry("a")]),
        # Quotes:
        (f"{Q}\na\n\n  b\n{Q}\nc", [Entry("a\n\n  b"), Entry("c")]),
        (f"{Q}a\nb{Q}", [Entry("a\nb")]),
        (f"{Q}/help{Q}\n", [Entry("/help")]),
        (f"{Q}\n/help\n/quit\n{Q}\n", [Entry("/help\n/quit")]),
        (f"{Q}\na\\\nb\n{Q}\n", [Entry("a\\\nb")]),
        (f"{Q}{Q}\na", [Entry(""), Entry("a")]),
        (f"/system {Q}\nbe\nbrief\n{Q}", [Entry("be\nbrief", "/system")]),
        (f"a {Q}b{Q}\n", [Entry(f"a {Q}b{Q}")]),
        (f"{Q}\na\nb\n", [Entry("a\nb")]),  # the end of a pipe closes it
        ("", []),
    ],
)
def test_entries(text: str, expected: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(text, monkeypatch) == expected


def test_a_closed_standard_input_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert list(entries("help")) == []
