"""Which tests are slow: those with the marker `slow`. The clock here keeps the marker honest.

A test that takes more than a fifth of a second is marked, so that `pytest --fast`, and with it `make check`, leaves it
out, and so is one whose many cases are of little use in that minute: a few others of the same kind stay. At the end of
a run the unmarked tests that took far longer are listed; with --fast the run fails if there are any.

The clock reads processor time, of the test and of the processes that it waited for: on a busy machine every other kind
is longer. Fixtures don't count, since several tests share them.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

LEFT_OUT = {"slow", "compat", "gpu", "browser"}  # the markers of tests that --fast leaves out
FAST_LIMIT = 2.0  # seconds, with --fast: ten times what the marker says. In a fresh clone hypothesis makes its tables
LIMIT = 4.0  # otherwise: hypothesis then draws five times as many examples, or more


def processor_time() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def is_left_out_whole(path: Path) -> bool:
    """Whether a file's `pytestmark` says that --fast leaves out all its tests: then it need not be imported."""
    if not path.name.startswith("test_") or "\npytestmark = " not in (text := path.read_text(encoding="utf-8")):
        return False
    marks = [ast.unparse(node) for node in ast.parse(text).body if "pytestmark" in ast.unparse(node)[:10]]
    return any(name in LEFT_OUT for mark in marks for name in re.findall(r"\bmark\.(\w+)", mark))


class SlowTests:
    """A plugin of pytest. Under pytest-xdist the workers measure, and their reports tell the controller."""

    def __init__(self, fail: bool) -> None:
        self.fail, self.limit = fail, FAST_LIMIT if fail else LIMIT
        self.found: dict[str, float] = {}
        self.total = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        before = processor_time()
        try:
            return (yield)
        finally:
            item.user_properties.append(("processor time", processor_time() - before))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            seconds = dict(report.user_properties).get("processor time", 0)
            self.total += seconds
            if seconds > self.limit and "slow" not in report.keywords:
                self.found[report.nodeid] = seconds

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and self.fail and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.fail:
            terminalreporter.line(
                f"the tests took {self.total:.0f} s of processor time; `make check` has room for about 80"
            )
        if self.found:
            terminalreporter.section("slow, but not marked so: @pytest.mark.slow, or make them faster", red=self.fail)
            for nodeid, seconds in sorted(self.found.items(), key=lambda entry: -entry[1]):
                terminalreporter.line(f"{seconds:6.1f} s of processor time: {nodeid}")
