"""Signals as a polite request: finish the step, save, and stop.

    with StopRequest() as stop:
        while not stop.requested:
            ...

SIGINT (Ctrl-C), SIGTERM (what `kill`, a container or a cluster sends) and SIGHUP (the terminal or the SSH session is
gone) set `stop.signal`. A Ctrl-C after that raises KeyboardInterrupt at once. Files are written whole or not at all, so
that does no harm either. The other two ask for nothing new when they come again, and they do come again: a shell passes
on the SIGHUP that the kernel has sent already. A signal that is ignored, as SIGHUP is under `nohup`, stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequest:
    """Catches the signals inside its block. `signal` is the number of the one that came first, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in _SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, or in the background of a script
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            _tell("\nFinishing this step, then saving. Ctrl-C once more quits at once.\n")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


def _tell(words: str) -> None:
    """Write to stderr, if there is one: the number 2 may belong to a file of data.

    os.write, not print: the signal may have come in the middle of a print.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), words.encode())
