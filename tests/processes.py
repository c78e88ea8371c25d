"""Processes that the tests start and wait for."""

from __future__ import annotations

import subprocess
from typing import Any


class Process(subprocess.Popen[Any]):
    """`subprocess.Popen`, whose `with` block would wait for ever after an assertion that failed in it."""

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)
