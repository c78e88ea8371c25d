"""A signal asks the run to finish the step, save, and stop.

    with StopRequest() as stop:
        while not stop.requested:
            ...

SIGINT (Ctrl-C), SIGTERM (from `kill`, a container or a cluster) and SIGHUP (the terminal or the SSH session has closed)
set `stop.signal`. A second Ctrl-C raises KeyboardInterrupt at once, which is safe because files are written atomically.
A second SIGTERM or SIGHUP does nothing more; they do repeat, since a shell forwards the SIGHUP that the kernel has
already sent. A signal that is ignored, as SIGHUP is under `nohup`, stays ignored.

Processes that share a run must stop at the same step, whichever was signalled first. With `shared`, a signal is only
`heard` until they have agreed on it (`settle`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequest:
    """Catches the signals inside its block. `signal` is the number of the first one, or None."""

    def __init__(self, shared: bool = False, tell: bool = True) -> None:
        self.shared, self.tell = shared, tell
        self.signal: int | None = None
        self.heard: int | None = None  # by this process
        self.urgent: Callable[[], None] | None = None  # called at once, in the handler
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            for number in _SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, or in the background of a script
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def settle(self, signal: int | None) -> None:
        """The signal that all processes have agreed on, if any."""
        if self.signal is None:
            self.signal = signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.heard is None:
            self.heard = number
            if not self.shared:
                self.signal = number
            if self.urgent is not None:
                self.urgent()
            if self.tell:
                _tell("\nFinishing this step, then saving. Press Ctrl-C again to quit at once.\n")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


def _tell(words: str) -> None:
    """Write to stderr if it is open: file descriptor 2 may belong to a data file.

    os.write instead of print: the signal may have interrupted a print.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), words.encode())
