"""Processes that the tests start and wait for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any


class Process(subprocess.Popen[Any]):
    """`subprocess.Popen`, whose `with` block would wait for ever after an assertion that failed in it."""

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:
            kill_all(self.pid)
            self.kill()
        super().__exit__(kind, value, traceback)


def run_within(command: list[str], seconds: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with its output captured as text, whose time limit ends what the command has started, too."""
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill_all(process.pid)
            out, err = process.communicate()
            raise AssertionError(f"{command} did not end within {seconds} s\n{out[-3000:]}\n{err[-6000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_all(pid: int) -> None:
    """Kill a process and all that it has started, directly or not. (mpirun alone would leave its processes behind.)"""
    for found in (*descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started and that are still there, and theirs."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    parents = {int(child): int(parent) for child, parent in map(str.split, lines)}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]
