"""Ctrl-C as a polite request: finish the step, save, and stop.

    with StopRequest() as stop:
        while not stop.requested:
            ...

The first SIGINT (Ctrl-C) or SIGTERM (what `kill`, a container or a cluster sends) sets `stop.signal`; a second
raises KeyboardInterrupt at once. Files are written whole or not at all, so that does no harm either.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Catches the signals inside its block. `signal` is the number of the one that came, or None."""

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
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        # os.write, not print: the signal may have come in the middle of a print.
        with contextlib.suppress(OSError):
            os.write(2, b"\nFinishing this step, then saving. Once more to quit at once.\n")
