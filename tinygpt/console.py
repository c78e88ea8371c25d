"""The console that a process was started from, which may go away before the process does.

A reader ends (`| head`), a terminal is closed, the disk of a log file fills up; a program without a window has no
streams at all. Then nobody sees what is printed, and that is no reason to end hours of training:

    Lenient(sys.stderr)      a stream to show progress on: what can't be written is dropped
    bar(batches, "scoring")  tqdm's progress bar on such a stream
    say("...")               print, for a command whose work isn't what it prints

`tinygpt/__init__.py` imports this module before all others, so that Ctrl-C is heeded from the first moments on
(`quick_interrupt`); so it imports next to nothing itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

# Streams -----------------------------------------------------------------------------------------


class Lenient:
    """A text stream that never raises. None, or one that breaks: what is written goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, words: str) -> int:
        self._attempt("write", words)
        return len(words)

    def flush(self) -> None:
        self._attempt("flush")

    def isatty(self) -> bool:
        return bool(self._attempt("isatty"))

    @property
    def encoding(self) -> str | None:
        """tqdm draws its bar with the characters that this one has."""
        return getattr(self.stream, "encoding", None)

    def _attempt(self, method: str, *arguments: Any) -> Any:
        """None where it fails. After an OSError the stream is tried again: a full disk may get room."""
        if self.stream is None:
            return None
        try:
            return getattr(self.stream, method)(*arguments)
        except OSError:
            return None
        except Exception:  # closed (ValueError), or a stand-in that lacks a method or has a defect
            if method == "write":
                self.stream = None
            return None


def bar(items: Iterable[Any], description: str, shown: bool = True) -> Any:
    """`items`, with a progress bar on stderr where that is a terminal."""
    import shutil

    from tqdm import tqdm

    stream, size = Lenient(sys.stderr), shutil.get_terminal_size()
    hidden = not (shown and stream.isatty())
    return tqdm(
        items, desc=description, leave=False, file=stream, disable=hidden, ncols=size.columns, nrows=size.lines
    )  # fmt: skip


def say(words: object) -> None:
    """Print a line on stdout; where nobody reads it (a closed pipe or terminal, a full disk), go on without."""
    try:
        print(words, flush=True)
    except (OSError, ValueError):
        silence(sys.stdout)


def silence(stream: Any) -> None:
    """Send what a broken stream still holds, and all that follows, nowhere: else Python fails with it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def reader_is_gone(stream: Any) -> bool:
    """Whether `stream` is a pipe that nobody reads any more."""
    try:
        stream.flush()
        import select

        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError, AttributeError):  # no descriptor; Windows has no poll
        return False


def fill_standard_descriptors() -> None:
    """Open the null device where a standard stream was closed by the caller (`2>&-`).

    Else the next file that is opened gets the number 2, and what a library writes to "stderr" lands in a data file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)


# Ctrl-C at the start ------------------------------------------------------------------------------

_quick = False


def quick_interrupt() -> None:
    """Let Ctrl-C end the process at once, without a traceback, while the command `tinygpt` imports what it needs.

    Only where this process is that command. An interrupt that is ignored (`nohup`, `&` in a script) stays ignored.
    """
    global _quick
    if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _quick = True


def usual_interrupt() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    global _quick
    if _quick:
        _quick = False
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_the_command() -> bool:
    words = getattr(sys, "orig_argv", [])
    if "-m" in words:
        return words[words.index("-m") + 1 :][:1] == ["tinygpt"]
    program = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    return program in ("tinygpt", "tinygpt.exe")


quick_interrupt()
