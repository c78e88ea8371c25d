"""Settings for every test: hypothesis without time limits (machines are shared) and with the same examples each run;
threads; and the promise that the build meant to be tested is the one that is.

The workers of pytest-xdist share the cores: each gets its part of them. What several threads do is tested by
`tests/kernel/test_threads.py` and `tests/kernel/test_thread_team.py`, which choose the number themselves.

With TINYGPT_EXT=require the tests refuse to run without the compiled kernels, with TINYGPT_EXT=off to run with them.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

import tinygpt
from tests.cli.helpers import Answer
from tests.slow import LEFT_OUT, SlowTests, is_left_out_whole
from tests.training.helpers import OPTIONS, write_text
from tinygpt import cli
from tinygpt.backends import get
from tinygpt.backends.numpy import default_num_threads

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("TINYGPT_NUM_THREADS", str(max(1, default_num_threads() // workers)))

settings.register_profile(
    "tinygpt", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tinygpt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="break results and kernels everywhere, not only in a sample of places",
    )
    parser.addoption(
        "--fast",
        action="store_true",
        help="what `make check` runs: no slow tests, no comparisons with other libraries, fewer random examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--exhaustive"):
        config.pluginmanager.register(SlowTests(fail=config.getoption("--fast")))
    wanted, compiled = os.environ.get("TINYGPT_EXT"), get("numpy").extension() is not None
    if (wanted == "require" and not compiled) or (wanted == "off" and compiled):
        raise pytest.UsageError(f"TINYGPT_EXT={wanted}, but the tinygpt to be tested is: {about()}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --fast no file is imported that has nothing to run: the imports of some take longer than many tests."""
    if not config.getoption("--fast"):
        return None
    return True if "vs_" in collection_path.name or is_left_out_whole(collection_path) else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """A comparison with another library is in a file `test_*vs_*.py`, beside the tests of what it compares."""
    if "vs_" in item.path.name:
        item.add_marker("compat")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        left_out = [item for item in items if LEFT_OUT & {mark.name for mark in item.iter_markers()}]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
        for function in {getattr(item, "function", None) for item in items}:
            if is_hypothesis_test(function):
                draw_fewer(function)


def draw_fewer(function: Any) -> None:
    """A fifth of the random examples that a test asks for, three at the most."""
    asked = function._hypothesis_internal_use_settings  # Hypothesis has no public name for it
    fewer = settings(asked, max_examples=max(1, min(3, asked.max_examples // 5)))
    function._hypothesis_internal_use_settings = fewer


def pytest_report_header() -> str:
    return about()


def about() -> str:
    return f"tinygpt in {Path(tinygpt.__file__).parent}: {get('numpy').describe()}"


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """A script's background jobs ignore SIGINT, and those of nohup SIGHUP; training then ignores them too. The tests,
    and the processes that they start, take them as in a terminal, however the tests were started."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def fewer(request: pytest.FixtureRequest) -> Any:
    """fewer(count): with --fast a fifth, for the tests that draw their examples by themselves."""
    return lambda count: max(1, count // 5) if request.config.getoption("--fast") else count


@pytest.fixture
def threads() -> Iterator[Any]:
    """threads(count) sets their number until the end of the test."""
    if get("numpy").extension() is None:
        pytest.skip("set_num_threads needs the compiled extension")
    before = tinygpt.get_num_threads()
    yield tinygpt.set_num_threads
    tinygpt.set_num_threads(before)


@pytest.fixture
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loss curve is drawn, which takes three quarters of the time of a run of a few steps."""
    monkeypatch.setattr("tinygpt.training.monitoring.reporting.draw_loss_curve", lambda *paths: None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, through Playwright: for tests with the marks of tests/browser.py.

    It ends with the module, since Playwright keeps an event loop running in this thread: other tests start their own.
    """
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


# The command line -------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """run("sample", "--model=...") -> Answer."""
    return lambda *arguments: Answer([str(a) for a in arguments], capsys)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "verse.txt")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A run that `model` copies: training it anew for each file would take longer than most tests."""
    folder = tmp_path_factory.mktemp("model") / "run"
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *OPTIONS, f"--data={text}", f"--out={folder}"])
    assert not ended.value.code
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """The folder of a finished run."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("model") / "run")
