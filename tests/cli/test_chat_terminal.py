"""`tinygpt chat` in a terminal: Ctrl-C, several lines, a pseudo-terminal."""

from __future__ import annotations

import io
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Process
from tests.training.helpers import ENVIRONMENT
from tinygpt.cli import chat

BLOCK = 120


def test_ctrl_c_stops_the_answer_alone(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        calls.append(tokenizer.decode(ids))
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    answer = say("a\nc\n")
    assert (answer.code, answer.out) == (0, "half an\nhalf an\n")
    assert "Assistant: half an\nUser: c" in calls[1]


def test_ctrl_c_before_the_answer_takes_the_message_back(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        calls.append(tokenizer.decode(ids))
        if len(calls) == 1:
            raise KeyboardInterrupt
        yield "fine"

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    answer = say("a\nc\n")
    assert answer.err == "[Stopped before the answer began: the message is not part of the dialogue.]\n"
    assert calls == ["User: a\nAssistant:", "User: c\nAssistant:"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def type_in(run: Any, talker: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """type_in([line or exception, ...]) -> (Answer, the prompts of the terminal)."""

    def call(lines: list[Any]) -> Any:
        typed, prompts = iter(lines), list[str]()

        def typing(prompt: str) -> str:
            prompts.append(prompt)
            line = next(typed)
            if isinstance(line, BaseException):
                raise line
            return str(line)

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", typing)
        return run("chat", f"--model={talker}", "--greedy", "--max-new-tokens=10"), prompts

    return call


def test_a_typed_dialogue(type_in: Any) -> None:
    answer, prompts = type_in(["a", KeyboardInterrupt(), "c", EOFError()])
    assert answer.code == 0
    assert answer.out == "bb\n\nbb\n\n"
    assert answer.err.splitlines() == [f"[{chat.HELP}]", "[Ctrl-D or /quit quits.]"]
    assert prompts == ["> "] * 4


def test_several_typed_lines(type_in: Any, seen: list[str]) -> None:
    lines = ["a \\", "b", '"""', "c", "", '  d"""', "/x\ny", "dropped \\", KeyboardInterrupt(), "e", '"""', "f"]
    answer, prompts = type_in([*lines, EOFError()])
    assert prompts == ["> ", "... ", "> ", "... ", "... ", "... ", "> ", "> ", "... ", "> ", "> ", "... ", "... "]
    said = [text.rpartition("User: ")[2].partition("\nAssistant:")[0] for text in seen]
    assert said == ["a \nb", "c\n\n  d", "/x\ny", "e"]  # what was pasted is one line to input(); the end drops "f"
    assert answer.err.splitlines() == [f"[{chat.HELP}]", "[The message is dropped.]"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_in_a_pseudo_terminal(talker: Path) -> None:
    """Messages, several lines, Ctrl-C in an answer that would not end, Ctrl-D."""
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "tinygpt", "chat", f"--model={talker}", "--seed=1"]
    command += ["--temperature=9", "--max-new-tokens=9999999"]
    with Process(
        command, stdin=slave, stdout=slave, stderr=slave, env=ENVIRONMENT | {"TERM": "dumb"}, preexec_fn=take_terminal
    ) as process:
        os.close(slave)
        read_until(master, b"> ")
        os.write(master, b"a\n")
        wait_for_output(master, 200)
        os.write(master, b"\x03")
        read_until(master, b"\n> ")
        os.write(master, b"/undo\n")
        assert b"Taken back: a" in read_until(master, b"> ")
        os.write(master, b'"""\n')
        read_until(master, b"... ")
        assert b"The message is dropped" in interrupted(master, b"> ")
        os.write(master, b"\x04")
        assert process.wait(timeout=60) == 0
    os.close(master)


def take_terminal() -> None:
    """Make the terminal that of the new process, so that Ctrl-C in it is a signal."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def wait_for_output(terminal: int, count: int) -> None:
    while count > 0:
        assert select.select([terminal], [], [], 60)[0]
        count -= len(os.read(terminal, 1024))


def interrupted(terminal: int, mark: bytes) -> bytes:
    """Press Ctrl-C until the mark comes. Just before Python waits for a line, a signal waits for the next key."""
    seen, deadline = b"", time.monotonic() + 60
    while not seen.endswith(mark):
        assert time.monotonic() < deadline, seen
        os.write(terminal, b"\x03")
        while not seen.endswith(mark) and select.select([terminal], [], [], 10)[0]:
            seen += os.read(terminal, 1024)
    return seen


def read_until(terminal: int, mark: bytes) -> bytes:
    seen = b""
    while not seen.endswith(mark):
        assert select.select([terminal], [], [], 60)[0], seen
        seen += os.read(terminal, 1024)
    return seen
