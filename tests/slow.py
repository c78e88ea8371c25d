"""Which tests are slow: those with the marker `slow`. The clock here keeps the marker honest.

A test that takes more than two seconds is marked, so that `pytest --fast`, and with it `make check`, leaves it out. At
the end of a run the unmarked tests that took far longer are listed; with --fast the run fails if there are any.

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
LIMIT = 4.0  # seconds. Twice what the marker says: processors differ, and caches are shared


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
        self.fail = fail
        self.found: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        before = processor_time()
        try:
            return (yield)
        finally:
            item.user_properties.append(("processor time", processor_time() - before))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and "slow" not in report.keywords:
            seconds = dict(report.user_properties).get("processor time", 0)
            if seconds > LIMIT:
                self.found[report.nodeid] = seconds

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and self.fail and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.found:
            terminalreporter.section("slow, but not marked so: @pytest.mark.slow, or make them faster", red=self.fail)
            for nodeid, seconds in sorted(self.found.items(), key=lambda entry: -entry[1]):
                terminalreporter.line(f"{seconds:6.1f} s of processor time: {nodeid}")
