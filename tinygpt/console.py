"""Console output that can fail without ending the process.

The reader of a pipe may exit (`| head`), the terminal may be closed, the disk of a log file may fill up, and a GUI
program has no standard streams at all. None of this should end hours of training:

    Lenient(sys.stderr)      a stream for progress output, which drops what can't be written
    bar(batches, "scoring")  tqdm's progress bar on such a stream, or in the output of a notebook's cell
    say("...")               print, for a command whose main result is not what it prints

`tinygpt/__init__.py` imports this module first, so that Ctrl-C works from the very start (`quick_interrupt`). So this
module imports next to nothing itself.
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
    """A text stream that never raises. If `stream` is None or breaks, the output is discarded."""

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
        """tqdm chooses the characters of its bar by this."""
        return getattr(self.stream, "encoding", None)

    def _attempt(self, method: str, *arguments: Any) -> Any:
        """Call the method; None if it fails. After an OSError we keep trying: a full disk may get free space again."""
        if self.stream is None:
            return None
        try:
            return getattr(self.stream, method)(*arguments)
        except OSError:
            return None
        except Exception:  # closed (ValueError), or a replacement stream that is incomplete or broken
            if method == "write":
                self.stream = None
            return None


def in_notebook() -> bool:
    """Whether what is written to stderr appears below a cell in Jupyter or Colab.

    Their kernel replaces stderr by its own stream, which is not a terminal. Inside `%%capture` or
    `contextlib.redirect_stderr` it is yet another stream.
    """
    return type(sys.stderr).__module__.partition(".")[0] == "ipykernel"


def bar(items: Iterable[Any], description: str, shown: bool = True) -> Any:
    """Wrap `items` in a progress bar: on stderr, if that is a terminal, or in a notebook."""
    return _bar(shown, iterable=items, desc=description)


def byte_bar(total: int | None, description: str) -> Any:
    """A bar for reading `total` bytes (None: unknown): on stderr, if that is a terminal, or in a notebook.

    It appears after two seconds. Call `update(count)`, and `close()` at the end.
    """
    return _bar(True, total=total, desc=description, delay=2, unit="B", unit_scale=True)


def _bar(shown: bool, **options: Any) -> Any:
    if shown and in_notebook():
        from .notebook import NotebookBar

        return NotebookBar(leave=False, **options)
    import shutil

    from tqdm import tqdm

    stream, size = Lenient(sys.stderr), shutil.get_terminal_size()
    hidden = not (shown and stream.isatty())
    return tqdm(leave=False, file=stream, disable=hidden, ncols=size.columns, nrows=size.lines, **options)


def say(words: object) -> None:
    """Print a line on stdout, or carry on without it if that fails (closed pipe or terminal, full disk)."""
    try:
        print(words, flush=True)
    except (OSError, ValueError):
        silence(sys.stdout)


def in_bytes(size: float) -> str:
    """A size as text, such as "1.5 GB"; a GB is 10**9 bytes."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1000 else f"{size:.0f} GB"


def silence(stream: Any) -> None:
    """Redirect a broken stream to the null device; otherwise Python fails at exit when it flushes the buffered rest."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def reader_is_gone(stream: Any) -> bool:
    """Whether `stream` is a pipe whose reader has exited."""
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
    """Open the null device for each standard stream that the caller closed (`2>&-`).

    Otherwise the next file we open gets descriptor 2, and a library's writes to stderr end up in a data file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


# Ctrl-C during start-up ---------------------------------------------------------------------------

_quick = False


def quick_interrupt() -> None:
    """Make Ctrl-C end the process at once, without a traceback, while the command `tinygpt` does its imports.

    Does nothing in other programs. If SIGINT is being ignored (`nohup`, `&` in a script), it stays ignored.
    """
    global _quick
    if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _quick = True


def usual_interrupt() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again."""
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
